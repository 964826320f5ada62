"""Calibration: the decisions of a policy, and what a selector spends at each cost weight."""

from __future__ import annotations

import functools
from typing import Any, Callable

import jax
import jax.numpy as jnp
import numpy as np

from prance_jax.adaptive.budget import BudgetTable
from prance_jax.data.source import Split
from prance_jax.evaluation.evaluate import changed_images, evaluate
from prance_jax.models.forward import forward_adaptive
from prance_jax.models.vit import ViT
from prance_jax.selector.cost_weight import cost_weight_from_asinh, cost_weight_to_asinh
from prance_jax.selector.policies import DecisionPolicy, PolicyWithCost, StaticPolicy
from prance_jax.spec.macs import macs
from prance_jax.spec.model_spec import ModelSpec
from prance_jax.spec.structure import Structure


@functools.lru_cache(maxsize=None)
def _compiled_decisions(spec: ModelSpec, policy: DecisionPolicy) -> Callable:
    """Compiled (params, policy_params, images, key) -> choices of groups 1, 2, ..., entries [B]."""

    def run(params, policy_params, images, key):
        output = forward_adaptive(
            ViT(spec), params, images, policy.first_choice, policy.decide(policy_params, key)
        )
        return jax.tree.map(
            lambda size: jnp.broadcast_to(size, images.shape[:1]), output.structure.groups[1:]
        )

    return jax.jit(run)


def collect_decisions(
    spec: ModelSpec,
    policy: DecisionPolicy,
    params: Any,
    policy_params: Any,
    images: np.ndarray,
    batch: int = 250,
) -> Structure:
    """Collects the structures that a policy chooses for images, by masked execution.

    Args:
      spec: the network.
      policy: takes the decisions.
      params: parameters of the network.
      policy_params: parameters of the policy.
      images: float [N, S, S, channels], normalised as in training.
      batch: images per call.

    Returns:
      A structure with entries [N]; group 0 is static.
    """
    run, parts = _compiled_decisions(spec, policy), []
    for number, start in enumerate(range(0, len(images), batch)):
        rows = images[start : start + batch]
        padded = np.pad(rows, [(0, batch - len(rows))] + [(0, 0)] * 3)
        choices = jax.device_get(
            run(params, policy_params, padded, jax.random.fold_in(jax.random.key(0), number))
        )
        parts.append(jax.tree.map(lambda leaf: leaf[: len(rows)], choices))
    return Structure((policy.first_choice, *jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)))


def calibrate_budget_table(
    spec: ModelSpec,
    policy: DecisionPolicy,
    params: Any,
    policy_params: Any,
    split: Split,
    cost_weights: tuple[float, float],
    decision_cost: int = 0,
    num_points: int = 9,
    gap: float = 0.03,
) -> tuple[BudgetTable, Structure]:
    """Measures MACs and changed predictions of a selector of every budget at many cost weights.

    The first quarter of the images places the calibration points: `num_points` evenly on the asinh
    scale, then more in between until neighbours differ by at most `gap`, or until there are five
    times as many. Everything in the table is measured on the other images, so the certified budget
    does not depend on the images that placed its points.

    Args:
      spec: the network.
      policy: the selector.
      params: parameters of the network.
      policy_params: parameters of the selector, without a cost weight.
      split: held-out images.
      cost_weights: (lowest, highest) cost weight.
      decision_cost: MACs of one decision.
      num_points: calibration points to begin with.
      gap: largest difference between neighbours, as a share of the dense MACs.

    Returns:
      The table, and the decisions on up to 250 placing images at every point, for `choose_buckets`.
    """
    quarter = len(split.labels) // 4
    placing, measuring = (
        Split(split.images[part], split.labels[part], {}) for part in (slice(quarter), slice(quarter, None))
    )
    full = float(macs(spec, spec.largest).total)

    def with_cost(scaled: float) -> PolicyWithCost:
        return PolicyWithCost(policy_params, cost_weight_from_asinh(jnp.float32(scaled)))

    def run(scaled: float, images: Split):
        return evaluate(
            spec, policy, params, with_cost(scaled), images, batch=250, decision_cost=decision_cost
        )

    points = _place_points(
        lambda scaled: float(run(scaled, placing).macs.mean()) / full,
        *(float(cost_weight_to_asinh(cost_weight)) for cost_weight in cost_weights),
        num_points,
        gap,
    )
    full_predictions = evaluate(spec, StaticPolicy(spec.largest), params, (), measuring, batch=250).predicted
    shares, disagreements, decisions = [], [], []
    for scaled in points:
        evaluation = run(scaled, measuring)
        shares.append(float(evaluation.macs.mean()) / full)
        disagreements.append(int(changed_images(evaluation.predicted, full_predictions).sum()))
        decisions.append(
            collect_decisions(spec, policy, params, with_cost(scaled), placing.images[:250]).groups[1:]
        )
    groups = jax.tree.map(lambda *parts: np.concatenate(parts), *decisions)
    # A point that spends no more than one before it is left out: every budget has one cost weight.
    kept = [index for index, share in enumerate(shares) if share > max(shares[:index], default=0.0)]
    table = BudgetTable(
        tuple(float(cost_weight_from_asinh(jnp.float32(points[index]))) for index in kept),
        tuple(shares[index] for index in kept),
        tuple(disagreements[index] for index in kept),
        len(measuring.labels),
    )
    return table, Structure((policy.first_choice, *groups))


def _place_points(
    share: Callable[[float], float], low: float, high: float, num_points: int, gap: float
) -> list[float]:
    """Falling asinh cost weights whose neighbours differ by at most `gap` in MACs."""
    points = list(np.linspace(high, low, num_points))
    shares = [share(point) for point in points]
    while len(points) < 5 * num_points:
        index = int(np.argmax(np.diff(shares)))
        if shares[index + 1] - shares[index] <= gap:
            break
        middle = (points[index] + points[index + 1]) / 2
        points.insert(index + 1, middle)
        shares.insert(index + 1, share(middle))
    return points
