"""Decisions rounded up to plans: exactly the plan's sizes, never less than was asked for, the same when served."""

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
from prance_jax.spec.macs import macs, token_counts

FIRST, BATCH = SHORT.first_group("24x2"), 9


def drawn(spec, seed, batch=BATCH):
    some = structures(spec, seed, batch)
    return some._replace(groups=(FIRST, *some.groups[1:]))


@pytest.mark.parametrize("mode", ["prune", "prune_merge"])
def test_all_that_the_plan_gives(mode):
    spec = make_spec(mode, space=SHORT)
    buckets = choose_buckets(spec, drawn(spec, 9, 60), 2, multiple=4)
    params, wanted = noisy_params(spec), drawn(spec, 1)
    images = jax.random.normal(jax.random.key(3), (BATCH, 16, 16, 3))
    policy, key = BucketedPolicy(GivenPolicy(FIRST), buckets), jax.random.key(0)
    outcome = jax.jit(
        lambda: forward_adaptive(ViT(spec), params, images, FIRST, policy.decide(wanted, key))
    )()

    counts, asked = token_counts(spec, outcome.structure).mlp, token_counts(spec, wanted).mlp
    arriving = np.full(BATCH, spec.tokens)
    for group, own in enumerate(buckets.groups, start=1):
        first = SHORT.first_layers[group]
        choice, least = outcome.structure.groups[group], wanted.groups[group]
        for image in range(BATCH):
            sizes = tuple(int(size[image]) for size in (*choice.widths, *choice.mlp_dims))
            tokens_after = int(counts[first][image])
            fits = [bucket for bucket in own if bucket.widths + bucket.mlp_dims == sizes]
            assert any(tokens_after == min(bucket.tokens[-1], arriving[image]) for bucket in fits)
            assert all(int(a[image]) >= int(b[image]) for a, b in zip(choice.widths, least.widths))
            assert all(int(a[image]) >= int(b[image]) for a, b in zip(choice.mlp_dims, least.mlp_dims))
            assert tokens_after >= min(int(asked[first][image]), arriving[image])
        arriving = np.asarray(counts[first])
    assert (macs(spec, outcome.structure).total >= macs(spec, wanted).total).all()

    served = jax.jit(lambda: serve_adaptive(buckets, policy, params, wanted, images, key, 4))()
    scale = float(jnp.abs(outcome.logits).max())
    np.testing.assert_allclose(served.logits, outcome.logits, rtol=0, atol=1e-5 * scale)
