"""Decisions rounded up to buckets: exactly the bucket's sizes, and the same when served."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import SHORT, make_spec, noisy_params, structures

from prance_jax.adaptive.choose_buckets import choose_buckets
from prance_jax.adaptive.executor import serve_adaptive
from prance_jax.adaptive.rounding import BucketedPolicy
from prance_jax.models.forward import forward_adaptive
from prance_jax.models.vit import ViT
from prance_jax.selector.policies import GivenPolicy
from prance_jax.spec.macs import macs
from prance_jax.spec.token_counts import tokens_after_layers

FIRST, BATCH = SHORT.first_group("24x2"), 9


def random_decisions(spec, seed, batch=BATCH):
    structure = structures(spec, seed, batch)
    return structure._replace(groups=(FIRST, *structure.groups[1:]))


@pytest.mark.parametrize("mode", ["prune", "prune_merge"])
def test_an_image_uses_its_whole_bucket(mode):
    spec = make_spec(mode, space=SHORT)
    buckets = choose_buckets(spec, random_decisions(spec, 9, 60), 2, multiple=4)
    params, decided = noisy_params(spec), random_decisions(spec, 1)
    images = jax.random.normal(jax.random.key(3), (BATCH, 16, 16, 3))
    policy, key = BucketedPolicy(GivenPolicy(FIRST), buckets), jax.random.key(0)
    output = jax.jit(
        lambda: forward_adaptive(ViT(spec), params, images, FIRST, policy.decide(decided, key))
    )()

    counts = tokens_after_layers(spec, output.structure)
    decided_counts = tokens_after_layers(spec, decided)
    arriving = np.full(BATCH, spec.tokens)
    for group, group_buckets in enumerate(buckets.groups, start=1):
        first = SHORT.first_layers[group]
        choice, least = output.structure.groups[group], decided.groups[group]
        for image in range(BATCH):
            sizes = tuple(int(size[image]) for size in (*choice.widths, *choice.mlp_dims))
            tokens_after = int(counts[first][image])
            fits = [bucket for bucket in group_buckets if bucket.widths + bucket.mlp_dims == sizes]
            assert any(tokens_after == min(bucket.tokens[-1], arriving[image]) for bucket in fits)
            assert all(int(a[image]) >= int(b[image]) for a, b in zip(choice.widths, least.widths))
            assert all(int(a[image]) >= int(b[image]) for a, b in zip(choice.mlp_dims, least.mlp_dims))
            assert tokens_after >= min(int(decided_counts[first][image]), arriving[image])
        arriving = np.asarray(counts[first])
    assert (macs(spec, output.structure).total >= macs(spec, decided).total).all()

    served = jax.jit(lambda: serve_adaptive(buckets, policy, params, decided, images, key, 4))()
    scale = float(jnp.abs(output.logits).max())
    np.testing.assert_allclose(served.logits, output.logits, rtol=0, atol=1e-5 * scale)
