"""Decisions rounded up to plans: exactly the plan's sizes, never less than was asked for, the same when served."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import SHORT, make_spec, noisy_params, structures

from prance_jax.adaptive.choose_buckets import choose_plans
from prance_jax.adaptive.executor import serve
from prance_jax.adaptive.rounding import RoundedRule
from prance_jax.models.forward import walk
from prance_jax.models.vit import ViT
from prance_jax.selector.policies import GivenRule
from prance_jax.spec.macs import macs, token_counts

FIRST, BATCH = SHORT.first_group("24x2"), 9


def drawn(spec, seed, batch=BATCH):
    some = structures(spec, seed, batch)
    return some._replace(groups=(FIRST, *some.groups[1:]))


@pytest.mark.parametrize("mode", ["prune", "prune_merge"])
def test_all_that_the_plan_gives(mode):
    spec = make_spec(mode, space=SHORT)
    plans = choose_plans(spec, drawn(spec, 9, 60), 2, multiple=4)
    params, wanted = noisy_params(spec), drawn(spec, 1)
    images = jax.random.normal(jax.random.key(3), (BATCH, 16, 16, 3))
    rule, key = RoundedRule(GivenRule(FIRST), plans), jax.random.key(0)
    outcome = jax.jit(lambda: walk(ViT(spec), params, images, FIRST, rule.decide(wanted, key)))()

    counts, asked = token_counts(spec, outcome.structure).mlp, token_counts(spec, wanted).mlp
    arriving = np.full(BATCH, spec.tokens)
    for group, own in enumerate(plans.groups, start=1):
        first = SHORT.first_layers[group]
        choice, least = outcome.structure.groups[group], wanted.groups[group]
        for image in range(BATCH):
            sizes = tuple(int(size[image]) for size in (*choice.widths, *choice.hidden))
            left = int(counts[first][image])
            fits = [plan for plan in own if plan.widths + plan.hidden == sizes]
            assert any(left == min(plan.tokens[-1], arriving[image]) for plan in fits)
            assert all(int(a[image]) >= int(b[image]) for a, b in zip(choice.widths, least.widths))
            assert all(int(a[image]) >= int(b[image]) for a, b in zip(choice.hidden, least.hidden))
            assert left >= min(int(asked[first][image]), arriving[image])
        arriving = np.asarray(counts[first])
    assert (macs(spec, outcome.structure).total >= macs(spec, wanted).total).all()

    served = jax.jit(lambda: serve(plans, rule, params, wanted, images, key, 4))()
    scale = float(jnp.abs(outcome.logits).max())
    np.testing.assert_allclose(served.logits, outcome.logits, rtol=0, atol=1e-5 * scale)
