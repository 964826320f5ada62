"""What a rule decides on calibration images, and what a selector of every budget costs at each price."""

from __future__ import annotations

import functools
from typing import Any, Callable

import jax
import jax.numpy as jnp
import numpy as np

from prance_jax.adaptive.budget import BudgetTable
from prance_jax.data.source import Split
from prance_jax.evaluation.evaluate import evaluate
from prance_jax.models.forward import forward_adaptive
from prance_jax.models.vit import ViT
from prance_jax.selector.cost_weight import cost_weight_at, cost_weight_level
from prance_jax.selector.policies import DecisionPolicy, PolicyWithCost, StaticPolicy
from prance_jax.spec.macs import macs
from prance_jax.spec.model_spec import ModelSpec
from prance_jax.spec.structure import Structure


@functools.lru_cache(maxsize=None)
def _decisions(spec: ModelSpec, policy: DecisionPolicy) -> Callable:
    def run(params, policy_params, images, key):
        outcome = forward_adaptive(
            ViT(spec), params, images, policy.first_choice, policy.decide(policy_params, key)
        )
        return jax.tree.map(
            lambda size: jnp.broadcast_to(size, images.shape[:1]), outcome.structure.groups[1:]
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
    """The structure that `rule` gives each of the images [N, S, S, channels]: group 0 static, other entries [N]."""
    run, parts = _decisions(spec, policy), []
    for number, start in enumerate(range(0, len(images), batch)):
        part = images[start : start + batch]
        padded = np.pad(part, [(0, batch - len(part))] + [(0, 0)] * 3)
        found = jax.device_get(
            run(params, policy_params, padded, jax.random.fold_in(jax.random.key(0), number))
        )
        parts.append(jax.tree.map(lambda leaf: leaf[: len(part)], found))
    return Structure((policy.first_choice, *jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)))


def calibrated_budget_table(
    spec: ModelSpec,
    policy: DecisionPolicy,
    params: Any,
    policy_params: Any,
    split: Split,
    cost_weights: tuple[float, float],
    decision_cost: int = 0,
    rungs: int = 9,
    gap: float = 0.03,
) -> tuple[BudgetTable, Structure]:
    """Runs a selector of every budget on a split, at prices between (lowest, highest).

    The first quarter of the images says where rungs are needed: between the `rungs` evenly placed ones more are put in
    until neighbours differ by at most `gap` in MACs, or until there are five times as many. All figures are then taken
    from the other images, so that the contract does not see what placed its rungs.

    Returns what was measured, and the decisions on a share of the images at every rung, for `choose_plans`.
    """
    cut = len(split.labels) // 4
    placing, measuring = (
        Split(split.images[part], split.labels[part], {}) for part in (slice(cut), slice(cut, None))
    )
    full = float(macs(spec, spec.largest).total)

    def run(own: float, images: Split):
        conditioned_params = PolicyWithCost(policy_params, cost_weight_at(jnp.float32(own)))
        return evaluate(
            spec, policy, params, conditioned_params, images, batch=250, decision_cost=decision_cost
        )

    share = lambda own: float(run(own, placing).macs.mean()) / full
    levels = _placed(
        share, *(float(cost_weight_level(cost_weight)) for cost_weight in cost_weights), rungs, gap
    )
    wanted = evaluate(spec, StaticPolicy(spec.largest), params, (), measuring, batch=250).predicted
    shares, disagreements, drawn = [], [], []
    for own in levels:
        found = run(own, measuring)
        shares.append(float(found.macs.mean()) / full)
        disagreements.append(int((found.predicted != wanted).sum()))
        conditioned_params = PolicyWithCost(policy_params, cost_weight_at(jnp.float32(own)))
        drawn.append(collect_decisions(spec, policy, params, conditioned_params, placing.images[:250]))
    together = jax.tree.map(lambda *parts: np.concatenate(parts), *(one.groups[1:] for one in drawn))
    # A rung that costs no more than one before it is none: every budget is to have one price.
    kept = [rung for rung, own in enumerate(shares) if own > max(shares[:rung], default=0.0)]
    measured = BudgetTable(
        tuple(float(cost_weight_at(jnp.float32(levels[rung]))) for rung in kept),
        tuple(shares[rung] for rung in kept),
        tuple(disagreements[rung] for rung in kept),
        len(measuring.labels),
    )
    return measured, Structure((policy.first_choice, *together))


def _placed(share: Callable[[float], float], low: float, high: float, rungs: int, gap: float) -> list[float]:
    """Falling levels whose shares of MACs differ by at most `gap` from one to the next, see `calibrated_ladder`."""
    levels = list(np.linspace(high, low, rungs))
    shares = [share(own) for own in levels]
    while len(levels) < 5 * rungs:
        widest = int(np.argmax(np.diff(shares)))
        if shares[widest + 1] - shares[widest] <= gap:
            break
        middle = (levels[widest] + levels[widest + 1]) / 2
        levels.insert(widest + 1, middle)
        shares.insert(widest + 1, share(middle))
    return levels
