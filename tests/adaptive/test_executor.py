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


def random_decisions(spec, seed, batch=BATCH):
    structure = structures(spec, seed, batch)
    return structure._replace(groups=(FIRST, *structure.groups[1:]))


@functools.lru_cache(maxsize=None)
def executor(spec, chunk):
    """One compiled executor per network; its traces are counted."""
    buckets = choose_buckets(spec, random_decisions(spec, 99, 60), 2, multiple=2)
    traces = []

    def run(params, structure, images):
        traces.append(1)
        return serve_adaptive(
            buckets, GivenPolicy(FIRST), params, structure, images, jax.random.key(0), chunk
        )

    return jax.jit(run), buckets, traces


@functools.lru_cache(maxsize=None)
def masked(spec):
    return jax.jit(
        lambda params, groups, images: forward_adaptive(
            ViT(spec),
            params,
            images,
            FIRST,
            fixed_decisions(random_decisions(spec, 0)._replace(groups=(FIRST, *groups))),
        )
    )


@pytest.fixture(scope="module")
def batch_images():
    return jax.random.normal(jax.random.key(5), (BATCH, 16, 16, 3))


@pytest.mark.parametrize("mode, official", [(mode, False) for mode in MODES] + [("prune", True)])
def test_served_is_masked(mode, official, params, batch_images):
    """Logits to 1e-5, and every decision, for batches that mix all buckets and do not divide into chunks."""
    spec = make_spec(mode, official)
    run, buckets, traces = executor(spec, 4)
    for seed in range(3):
        structure = random_decisions(spec, seed)
        served, expected = (
            run(params, structure, batch_images),
            masked(spec)(params, structure.groups[1:], batch_images),
        )
        scale = float(jnp.abs(expected.logits).max())
        np.testing.assert_allclose(served.logits, expected.logits, rtol=0, atol=1e-5 * scale)
        np.testing.assert_array_equal(served.tokens_of_patches[-1], expected.tokens.token_of_patch)
        jax.tree.map(np.testing.assert_array_equal, served.structure.groups[1:], structure.groups[1:])
        for needed, used, group in zip(served.bucket_needed, served.bucket_used, buckets.groups):
            assert (needed <= used).all() and int(used.max()) < len(group)
            # Sorted chunks: at most one chunk per bucket runs images of different buckets.
            assert (np.sort(needed) <= np.sort(used)).all()
    assert len(traces) == 1


def test_batches_of_every_size_agree(params, batch_images):
    spec = make_spec("prune")
    structure = random_decisions(spec, 1)
    expected = masked(spec)(params, structure.groups[1:], batch_images).logits
    for batch, chunk in ((1, 8), (5, 2)):
        part = jax.tree.map(lambda leaf: leaf if isinstance(leaf, int) else leaf[:batch], structure)
        served = executor(spec, chunk)[0](params, part, batch_images[:batch])
        np.testing.assert_allclose(served.logits, expected[:batch], rtol=0, atol=1e-5)


def test_an_image_does_not_see_its_batch(params, batch_images):
    """The same image at another index, among images that need the largest bucket."""
    spec = make_spec("prune_merge")
    run, _, _ = executor(spec, 4)
    structure = random_decisions(spec, 2)
    alone = run(params, structure, batch_images).logits[5]
    order = np.random.default_rng(0).permutation(BATCH)
    largest = jax.tree.map(lambda leaf: jnp.full(BATCH, leaf), spec.largest)

    def mixed(size, most):
        return size if isinstance(size, int) else jnp.where(jnp.arange(BATCH) == 5, size, most)[order]

    groups = jax.tree.map(mixed, structure.groups[1:], largest.groups[1:])
    others = jnp.where((jnp.arange(BATCH) == 5)[:, None, None, None], batch_images, 3 * batch_images[::-1])[
        order
    ]
    among = run(params, structure._replace(groups=(FIRST, *groups)), others).logits[list(order).index(5)]
    np.testing.assert_allclose(among, alone, rtol=0, atol=1e-5 * float(jnp.abs(alone).max()))
