"""Channel pruning: removal of channels equals gating, heads agree, and closed gates can open again."""

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
    choose_gates,
    gate_costs,
    gate_share_at_macs,
    open_channels,
)
from prance_jax.baselines.channel_removal import remove_channels
from prance_jax.core.errors import UserError
from prance_jax.models.reduction import METHODS, ScheduledReduction, forward_reduced, scheduled_macs
from prance_jax.models.vit import ViT
from prance_jax.spec.macs import count_parameters, macs
from prance_jax.spec.model_spec import ChannelCounts
from prance_jax.tokens.schedules import KeepRate


def random_gates(spec, keep=0.6, multiple=(2, 4), seed=0):
    keys = jax.random.split(jax.random.key(seed), 3)
    scores = (jax.random.exponential(key, gate.shape) for key, gate in zip(keys, all_gates_open(spec)))
    return choose_gates(Gates(*scores), keep, gate_costs(spec), multiple)


def test_removed_channels_equal_closed_gates(params, images):
    spec = make_spec()
    gates = random_gates(spec)
    small, kept = remove_channels(spec, params, gates)
    run = lambda spec, params: quick_jit(lambda p, x: ViT(spec).apply({"params": p}, x, spec.largest))(
        params, images
    )
    np.testing.assert_allclose(run(small, kept), run(spec, apply_gates(params, gates)), rtol=1e-5, atol=1e-5)
    # It stores fewer parameters, and they have the shapes of a fresh network.
    assert sum(leaf.size for leaf in jax.tree.leaves(kept)) < sum(
        leaf.size for leaf in jax.tree.leaves(params)
    )
    fresh = jax.eval_shape(lambda: ViT(small).init(jax.random.key(0), images[:1])["params"])
    assert jax.tree.map(jnp.shape, kept) == jax.tree.map(jnp.shape, fresh)


def test_removed_channels_under_a_token_reduction(params, images):
    spec = make_spec()
    gates = random_gates(spec, seed=1)
    small, kept = remove_channels(spec, params, gates)
    cait = ScheduledReduction(METHODS["cait"], KeepRate(0.5, (2, 5), fused=False))
    run = lambda spec, params: quick_jit(lambda p, x: forward_reduced(ViT(spec), p, x, spec.largest, cait))(
        params, images
    )
    actual, expected = run(small, kept), run(spec, apply_gates(params, gates))
    np.testing.assert_allclose(actual.logits, expected.logits, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(actual.tokens.token_of_patch, expected.tokens.token_of_patch)
    assert scheduled_macs(small, small.largest, cait).total < scheduled_macs(spec, spec.largest, cait).total


def test_macs_of_a_pruned_network_are_those_of_its_program(params):
    from spec.test_macs import product_flops

    spec = make_spec()
    small, kept = remove_channels(spec, params, random_gates(spec, seed=2))
    image = jax.ShapeDtypeStruct((1, 16, 16, 3), jnp.float32)
    program = lambda p, x: ViT(small).apply({"params": p}, x, small.largest)
    flops = product_flops(jax.make_jaxpr(program)(kept, image).jaxpr)
    rows = sum(spec.tokens * small.space.heads * small.head_dims(layer)[0] for layer in range(6))
    early_logits = spec.num_classes * sum(group.widths[-1] for group in small.largest.groups)
    assert flops == 2 * (macs(small, small.largest).total + rows + early_logits)
    # One layer by the published formula: N C (2 q + v) + N^2 (q + v) + N v C + 2 N C f.
    q, v, f = small.head_dims(3)[0] * 2, small.head_dims(3)[1] * 2, small.channels_left.hidden[3]
    n, c = 17, 28
    layer_macs = n * c * (2 * q + v) + n * n * (q + v) + n * v * c + 2 * n * c * f
    without_layer = dataclasses.replace(
        small,
        channels_left=ChannelCounts(
            *[
                tuple(count * (layer != 3) for layer, count in enumerate(counts))
                for counts in dataclasses.astuple(small.channels_left)
            ]
        ),
    )
    assert macs(small, small.largest).total - macs(without_layer, without_layer.largest).total == layer_macs
    assert count_parameters(small, small.largest) < count_parameters(spec, spec.largest)


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.9])
def test_heads_keep_the_same_number_and_the_most_important(keep):
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
                is_open = gate[layer, head] > 0
                open_scores, closed_scores = score[layer, head][is_open], score[layer, head][~is_open]
                assert not len(closed_scores) or open_scores.min() > closed_scores.max()
        assert gate.mean() == pytest.approx(keep, abs=0.15)
    assert (gates.hidden.sum(1) % 4 == 0).all()
    assert open_channels(gates).qk == tuple(int(n) for n in gates.qk.sum(2)[:, 0])


def test_a_closed_gate_can_open_again(params, images):
    """A closed gate has an importance and its weights a gradient, though the output ignores them."""
    spec = make_spec()
    gates = random_gates(spec, seed=4)
    loss = lambda p, g: jnp.sum(jnp.sin(ViT(spec).apply({"params": apply_gates(p, g)}, images, spec.largest)))
    weight_gradients, gate_gradients = quick_jit(jax.grad(loss, argnums=(0, 1)))(params, gates)
    is_closed = np.asarray(gates.hidden[0]) == 0
    assert is_closed.any() and np.abs(np.asarray(gate_gradients.hidden[0])[is_closed]).min() > 0
    fc1_gradients = np.asarray(weight_gradients["block_0"]["fc1"]["kernel"])
    assert np.abs(fc1_gradients[:, :84][:, is_closed]).max() > 0
    # By definition: the derivative of the loss by the gate.
    step, gate = 1e-2, int(np.flatnonzero(is_closed)[0])
    moved = [gates._replace(hidden=gates.hidden.at[0, gate].add(s)) for s in (step, -step)]
    by_hand = (loss(params, moved[0]) - loss(params, moved[1])) / (2 * step)
    np.testing.assert_allclose(gate_gradients.hidden[0, gate], by_hand, rtol=0.05, atol=1e-3)


@pytest.mark.parametrize("share", [0.45, 0.6, 0.8])
@pytest.mark.parametrize("layers", [None, (1, 3)])
def test_channels_for_given_macs(share, layers):
    """The pruned network has the target MACs, whichever layers are important or have few tokens."""
    spec = make_spec()
    full = macs(spec, spec.largest).total
    cait = (
        None if layers is None else ScheduledReduction(METHODS["cait"], KeepRate(0.85, layers, fused=False))
    )
    keep, costs = gate_share_at_macs(spec, share, cait), gate_costs(spec, cait)
    rng = np.random.default_rng(0)
    for seed in range(4):
        # At seed 3 some layers are far more important than others.
        layer_importance = np.exp(rng.normal(size=6) * seed)
        sampled = (rng.exponential(size=gate.shape).T * layer_importance for gate in all_gates_open(spec))
        scores = Gates(*(jnp.asarray(score.T, jnp.float32) for score in sampled))
        channels = open_channels(jax.tree.map(np.asarray, choose_gates(scores, keep, costs)))
        small = dataclasses.replace(spec, channels_left=channels)
        actual = macs(small, small.largest) if cait is None else scheduled_macs(small, small.largest, cait)
        assert actual.total / full == pytest.approx(share, abs=0.015), (seed, channels)


def test_the_cost_of_a_gate_by_hand():
    """One channel of q and k, of v, one hidden unit: N tokens, 2 heads, width 28."""
    costs, n, c, heads = gate_costs(make_spec()), 17, 28, 2
    assert costs.qk[3] == heads * (2 * n * c + n * n)
    assert costs.vo[3] == heads * (n * c + n * n + n * c)
    assert costs.hidden[3] == 2 * n * c


def test_gates_that_differ_over_heads_are_refused(params):
    gates = all_gates_open(make_spec())
    gates = gates._replace(vo=gates.vo.at[2, 1, 0].set(0.0))
    with pytest.raises(UserError, match=r"layer 2 keep \[8, 7\] channels \(vo\)"):
        remove_channels(make_spec(), params, gates)
