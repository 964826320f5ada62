"""The adaptive executor gives what masked execution gives, image by image, in one program."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import MODES, SPACE, make_spec, structures

from prance_jax.adaptive.choose_buckets import choose_buckets
from prance_jax.adaptive.executor import serve_adaptive
from prance_jax.models.forward import fixed_decisions, forward_adaptive
from prance_jax.models.vit import ViT
from prance_jax.selector.policies import GivenPolicy

FIRST = SPACE.first_group("24x2")
BATCH = 13


def decided(spec, seed, batch=BATCH):
    drawn = structures(spec, seed, batch)
    return drawn._replace(groups=(FIRST, *drawn.groups[1:]))


@functools.lru_cache(maxsize=None)
def program(spec, chunk):
    """One compiled executor per network; its traces are counted."""
    buckets = choose_buckets(spec, decided(spec, 99, 60), 2, multiple=2)
    traces = []

    def run(params, structure, images):
        traces.append(1)
        return serve_adaptive(
            buckets, GivenPolicy(FIRST), params, structure, images, jax.random.key(0), chunk
        )

    return jax.jit(run), buckets, traces


@functools.lru_cache(maxsize=None)
def whole(spec):
    return jax.jit(
        lambda params, rest, images: forward_adaptive(
            ViT(spec),
            params,
            images,
            FIRST,
            fixed_decisions(decided(spec, 0)._replace(groups=(FIRST, *rest))),
        )
    )


@pytest.fixture(scope="module")
def many():
    return jax.random.normal(jax.random.key(5), (BATCH, 16, 16, 3))


@pytest.mark.parametrize("mode, official", [(mode, False) for mode in MODES] + [("prune", True)])
def test_served_is_masked(mode, official, params, many):
    """Logits to 1e-5, and every decision, for batches that mix all plans and do not divide into chunks."""
    spec = make_spec(mode, official)
    run, buckets, traces = program(spec, 4)
    for seed in range(3):
        drawn = decided(spec, seed)
        served, wanted = run(params, drawn, many), whole(spec)(params, drawn.groups[1:], many)
        scale = float(jnp.abs(wanted.logits).max())
        np.testing.assert_allclose(served.logits, wanted.logits, rtol=0, atol=1e-5 * scale)
        np.testing.assert_array_equal(served.tokens_of_patches[-1], wanted.tokens.token_of_patch)
        jax.tree.map(np.testing.assert_array_equal, served.structure.groups[1:], drawn.groups[1:])
        for needed, ran, group in zip(served.needed, served.bucket_used, buckets.groups):
            assert (needed <= ran).all() and int(ran.max()) < len(group)
            # Sorted chunks: at most one chunk per plan runs images of different plans.
            assert (np.sort(needed) <= np.sort(ran)).all()
    assert len(traces) == 1


def test_batches_of_every_size_agree(params, many):
    spec = make_spec("prune")
    drawn = decided(spec, 1)
    wanted = whole(spec)(params, drawn.groups[1:], many).logits
    for batch, chunk in ((1, 8), (5, 2)):
        part = jax.tree.map(lambda leaf: leaf if isinstance(leaf, int) else leaf[:batch], drawn)
        served = program(spec, chunk)[0](params, part, many[:batch])
        np.testing.assert_allclose(served.logits, wanted[:batch], rtol=0, atol=1e-5)


def test_an_image_does_not_see_its_batch(params, many):
    """The same image among others, in another place, with neighbours that ask for the largest plan."""
    spec = make_spec("prune_merge")
    run, _, _ = program(spec, 4)
    drawn = decided(spec, 2)
    alone = run(params, drawn, many).logits[5]
    order = np.random.default_rng(0).permutation(BATCH)
    largest = jax.tree.map(lambda leaf: jnp.full(BATCH, leaf), spec.largest)

    def mixed(own, most):
        return own if isinstance(own, int) else jnp.where(jnp.arange(BATCH) == 5, own, most)[order]

    groups = tuple(jax.tree.map(mixed, own, most) for own, most in zip(drawn.groups[1:], largest.groups[1:]))
    others = jnp.where((jnp.arange(BATCH) == 5)[:, None, None, None], many, 3 * many[::-1])[order]
    among = run(params, drawn._replace(groups=(FIRST, *groups)), others).logits[list(order).index(5)]
    np.testing.assert_allclose(among, alone, rtol=0, atol=1e-5 * float(jnp.abs(alone).max()))
