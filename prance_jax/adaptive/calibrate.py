"""What a rule decides on calibration images, and the plans and the ladder of prices that follow from it."""

from __future__ import annotations

import functools
from typing import Any, Callable

import jax
import jax.numpy as jnp
import numpy as np

from prance_jax.adaptive.budget import Ladder
from prance_jax.adaptive.plans import Plans, choose_plans
from prance_jax.complexity import macs
from prance_jax.data.source import Split
from prance_jax.evaluation.evaluate import evaluate
from prance_jax.models.vit import ViT
from prance_jax.models.walk import walk
from prance_jax.selector.decide import Priced, Rule, StaticRule
from prance_jax.space import Structure
from prance_jax.spec import ModelSpec


@functools.lru_cache(maxsize=None)
def _decisions(spec: ModelSpec, rule: Rule) -> Callable:
    def run(params, variables, images, key):
        outcome = walk(ViT(spec), params, images, rule.first, rule.decide(variables, key))
        return jax.tree.map(
            lambda size: jnp.broadcast_to(size, images.shape[:1]), outcome.structure.groups[1:]
        )

    return jax.jit(run)


def decisions(
    spec: ModelSpec, rule: Rule, params: Any, variables: Any, images: np.ndarray, batch: int = 250
) -> Structure:
    """The structure that `rule` gives each of the images [N, S, S, channels]: group 0 static, other entries [N]."""
    run, parts = _decisions(spec, rule), []
    for number, start in enumerate(range(0, len(images), batch)):
        part = images[start : start + batch]
        padded = np.pad(part, [(0, batch - len(part))] + [(0, 0)] * 3)
        found = jax.device_get(run(params, variables, padded, jax.random.fold_in(jax.random.key(0), number)))
        parts.append(jax.tree.map(lambda leaf: leaf[: len(part)], found))
    return Structure((rule.first, *jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)))


def calibrated_plans(
    spec: ModelSpec,
    rule: Rule,
    params: Any,
    variables: Any,
    images: np.ndarray,
    number: int = 4,
    multiple: int = 8,
) -> Plans:
    """Plans for a rule from what it decides on calibration images, see `choose_plans`."""
    return choose_plans(spec, decisions(spec, rule, params, variables, images), number, multiple)


def calibrated_ladder(
    spec: ModelSpec,
    rule: Rule,
    params: Any,
    policy: Any,
    split: Split,
    prices: tuple[float, float],
    decision_cost: int = 0,
    rungs: int = 17,
) -> tuple[Ladder, Structure]:
    """Runs a selector of every budget on a split at `rungs` prices between (lowest, highest), evenly in the logarithm.

    Returns what was measured, and the decisions on a share of the images at every rung, for `choose_plans`.
    """
    full = float(macs(spec, spec.largest).total)
    wanted = evaluate(spec, StaticRule(spec.largest), params, (), split, batch=250).predicted
    ladder, shares, disagreements, drawn = np.geomspace(prices[1], prices[0], rungs), [], [], []
    for price in ladder:
        variables = Priced(policy, jnp.float32(price))
        found = evaluate(spec, rule, params, variables, split, batch=250, decision_cost=decision_cost)
        shares.append(float(found.macs.mean()) / full)
        disagreements.append(int((found.predicted != wanted).sum()))
        drawn.append(decisions(spec, rule, params, variables, split.images[:250]))
    together = jax.tree.map(lambda *parts: np.concatenate(parts), *(one.groups[1:] for one in drawn))
    measured = Ladder(
        tuple(map(float, ladder)),
        tuple(map(float, np.maximum.accumulate(shares))),
        tuple(disagreements),
        len(split.labels),
    )
    return measured, Structure((rule.first, *together))
