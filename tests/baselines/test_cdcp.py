"""Channel pruning: the removed network is the masked one, consistently over heads, and channels may come back."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import make_spec, quick_jit

from prance_jax.baselines.channel_gates import (
    Gates,
    all_gates_open,
    apply_gates,
    channels_left,
    choose_gates,
    gate_costs,
    macs_of_gates,
)
from prance_jax.baselines.channel_removal import remove_channels
from prance_jax.core.errors import UserError
from prance_jax.models.reduction import METHODS, ScheduledReduction, forward_reduced, scheduled_macs
from prance_jax.models.vit import ViT
from prance_jax.spec.macs import macs, parameters
from prance_jax.spec.model_spec import ChannelCounts
from prance_jax.tokens.schedules import KeepRate


def random_gates(spec, keep=0.6, multiple=(2, 4), seed=0):
    keys = jax.random.split(jax.random.key(seed), 3)
    scores = (jax.random.exponential(key, gate.shape) for key, gate in zip(keys, all_gates_open(spec)))
    return choose_gates(Gates(*scores), keep, gate_costs(spec), multiple)


def test_the_removed_network_is_the_masked_one(params, images):
    spec = make_spec()
    gates = random_gates(spec)
    small, kept = remove_channels(spec, params, gates)
    run = lambda spec, params: quick_jit(lambda p, x: ViT(spec).apply({"params": p}, x, spec.largest))(
        params, images
    )
    np.testing.assert_allclose(run(small, kept), run(spec, apply_gates(params, gates)), rtol=1e-5, atol=1e-5)
    # It holds what it costs, and every weight of it is used.
    assert sum(leaf.size for leaf in jax.tree.leaves(kept)) < sum(
        leaf.size for leaf in jax.tree.leaves(params)
    )
    cut = jax.eval_shape(lambda: ViT(small).init(jax.random.key(0), images[:1])["params"])
    assert jax.tree.map(jnp.shape, kept) == jax.tree.map(jnp.shape, cut)


def test_with_tokens_merged_too(params, images):
    spec = make_spec()
    gates = random_gates(spec, seed=1)
    small, kept = remove_channels(spec, params, gates)
    cait = ScheduledReduction(METHODS["cait"], KeepRate(0.5, (2, 5), fused=False))
    run = lambda spec, params: quick_jit(lambda p, x: forward_reduced(ViT(spec), p, x, spec.largest, cait))(
        params, images
    )
    found, wanted = run(small, kept), run(spec, apply_gates(params, gates))
    np.testing.assert_allclose(found.logits, wanted.logits, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(found.tokens.token_of_patch, wanted.tokens.token_of_patch)
    assert scheduled_macs(small, small.largest, cait).total < scheduled_macs(spec, spec.largest, cait).total


def test_macs_of_a_pruned_network_are_the_compilers(params):
    from spec.test_macs import product_flops

    spec = make_spec()
    small, kept = remove_channels(spec, params, random_gates(spec, seed=2))
    image = jax.ShapeDtypeStruct((1, 16, 16, 3), jnp.float32)
    program = lambda p, x: ViT(small).apply({"params": p}, x, small.largest)
    found = product_flops(jax.make_jaxpr(program)(kept, image).jaxpr)
    rows = sum(spec.tokens * small.space.heads * small.head_dims(layer)[0] for layer in range(6))
    glances = spec.num_classes * sum(group.widths[-1] for group in small.largest.groups)
    assert found == 2 * (macs(small, small.largest).total + rows + glances)
    # The dense network's count by the published formula: N C (2 q + v) + N^2 (q + v) + N v C + 2 N C f.
    q, v, f = small.head_dims(3)[0] * 2, small.head_dims(3)[1] * 2, small.channels_left.hidden[3]
    n, c = 17, 28
    one = n * c * (2 * q + v) + n * n * (q + v) + n * v * c + 2 * n * c * f
    split_prefix = dataclasses.replace(
        small,
        channels_left=ChannelCounts(
            *[
                tuple(x * (i != 3) for i, x in enumerate(own))
                for own in dataclasses.astuple(small.channels_left)
            ]
        ),
    )
    assert macs(small, small.largest).total - macs(split_prefix, split_prefix.largest).total == one
    assert parameters(small, small.largest) < parameters(spec, spec.largest)


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.9])
def test_heads_keep_as_many_and_the_most_important(keep):
    spec = make_spec()
    rng = np.random.default_rng(0)
    scores = Gates(
        *[jnp.asarray(rng.exponential(size=gate.shape), jnp.float32) for gate in all_gates_open(spec)]
    )
    gates = jax.tree.map(np.asarray, choose_gates(scores, keep, gate_costs(spec), (2, 4)))
    for name in ("qk", "vo"):
        gate, score = getattr(gates, name), np.asarray(getattr(scores, name))
        counts = gate.sum(2)
        assert (counts == counts[:, :1]).all() and (counts % 2 == 0).all() and counts.min() >= 2
        for layer in range(6):
            for head in range(2):
                own, shut = (
                    score[layer, head][gate[layer, head] > 0],
                    score[layer, head][gate[layer, head] == 0],
                )
                assert not len(shut) or own.min() > shut.max()
        assert gate.mean() == pytest.approx(keep, abs=0.15)
    assert (gates.hidden.sum(1) % 4 == 0).all()
    left = channels_left(gates)
    assert left.qk == tuple(int(n) for n in gates.qk.sum(2)[:, 0])


def test_a_closed_gate_can_open_again(params, images):
    """Weights behind it go on learning and it has an importance, though the output does not see them."""
    spec = make_spec()
    gates = random_gates(spec, seed=4)
    loss = lambda p, g: jnp.sum(jnp.sin(ViT(spec).apply({"params": apply_gates(p, g)}, images, spec.largest)))
    weights, moves = quick_jit(jax.grad(loss, argnums=(0, 1)))(params, gates)
    shut = np.asarray(gates.hidden[0]) == 0
    assert shut.any() and np.abs(np.asarray(moves.hidden[0])[shut]).min() > 0
    assert np.abs(np.asarray(weights["block_0"]["fc1"]["kernel"])[:, :84][:, shut]).max() > 0
    # By its definition: the derivative when the gate moves.
    step, gate = 1e-2, int(np.flatnonzero(shut)[0])
    moved = [gates._replace(hidden=gates.hidden.at[0, gate].add(s)) for s in (step, -step)]
    by_hand = (loss(params, moved[0]) - loss(params, moved[1])) / (2 * step)
    np.testing.assert_allclose(moves.hidden[0, gate], by_hand, rtol=0.05, atol=1e-3)


@pytest.mark.parametrize("share", [0.45, 0.6, 0.8])
@pytest.mark.parametrize("sites", [None, (1, 3)])
def test_channels_for_given_macs(share, sites):
    """However importance lies over the layers, and where tokens leave late ones cheap, the pruned network costs what was asked."""
    spec = make_spec()
    full = macs(spec, spec.largest).total
    cait = None if sites is None else ScheduledReduction(METHODS["cait"], KeepRate(0.85, sites, fused=False))
    keep, costs = macs_of_gates(spec, share, cait), gate_costs(spec, cait)
    rng = np.random.default_rng(0)
    for seed in range(4):
        # At seed 3 some layers are far more important than others.
        size_bias = np.exp(rng.normal(size=6) * seed)
        drawn = (rng.exponential(size=own.shape).T * size_bias for own in all_gates_open(spec))
        scores = Gates(*(jnp.asarray(own.T, jnp.float32) for own in drawn))
        left = channels_left(jax.tree.map(np.asarray, choose_gates(scores, keep, costs)))
        small = dataclasses.replace(spec, channels_left=left)
        spent = macs(small, small.largest) if cait is None else scheduled_macs(small, small.largest, cait)
        assert spent.total / full == pytest.approx(share, abs=0.015), (seed, left)


def test_the_cost_of_a_gate_by_hand():
    """One channel of q and k, of v, one hidden unit: N tokens, 2 heads, width 28."""
    costs, n, c, heads = gate_costs(make_spec()), 17, 28, 2
    assert costs.qk[3] == heads * (2 * n * c + n * n)
    assert costs.vo[3] == heads * (n * c + n * n + n * c)
    assert costs.hidden[3] == 2 * n * c


def test_gates_that_are_not_consistent(params):
    gates = all_gates_open(make_spec())
    gates = gates._replace(vo=gates.vo.at[2, 1, 0].set(0.0))
    with pytest.raises(UserError, match=r"layer 2 keep \[8, 7\] channels \(vo\)"):
        remove_channels(make_spec(), params, gates)
