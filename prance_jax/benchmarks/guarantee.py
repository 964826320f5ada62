"""Checks the guarantee of certified budgets by many random calibrations of one model."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np

from prance_jax.core.errors import UserError
from prance_jax.data.source import Split
from prance_jax.evaluation.evaluate import changed_images, evaluate
from prance_jax.selector.policies import PolicyWithCost, StaticPolicy
from prance_jax.serving.model import AdaptiveModel


def check_guarantee(
    model: AdaptiveModel,
    split: Split,
    eps: float,
    delta: float,
    *,
    splits: int = 200,
    calibration: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Counts how often a certified budget exceeds its error limit.

    Random calibration images are drawn `splits` times. Each time a budget is certified on them. The
    limit is exceeded where the network at that budget disagrees with the full network on more than
    `eps` of all images. This may happen in at most a share `delta` of the trials.

    Args:
      model: trained for every budget.
      split: all images.
      eps: largest share of disagreements.
      delta: how often the limit may be exceeded, a share.
      splits: number of trials.
      calibration: calibration images per trial.
      seed: of the draws.

    Returns:
      The settings; `broken` and `refused`, the shares of trials in which the limit was exceeded and
      in which no budget could be certified; `mean_budget`, of the others; `cheapest_true_budget`,
      that all images would allow.

    Raises:
      UserError: the model has one budget, or there are too few images.
    """
    if model.budget_table is None:
        raise UserError("the guarantee needs a selector of every budget: train with selector.cost_weights")
    total = len(split.labels)
    if calibration >= total:
        raise UserError(
            f"guarantee: {calibration} calibration images of {total} leave no others to check; use fewer"
        )
    wrong = disagreements(model, split)
    error_rates, rng = wrong.mean(axis=1), np.random.default_rng(seed)
    broken, refused, budgets = 0, 0, []
    for _ in range(splits):
        indices = rng.choice(total, calibration, replace=False)
        counts = tuple(int(count) for count in wrong[:, indices].sum(axis=1))
        budget_table = dataclasses.replace(model.budget_table, disagreements=counts, images=calibration)
        try:
            budgets.append(budget_table.certified_budget(eps, delta))
        except UserError:
            refused += 1
            continue
        broken += bool(error_rates[budget_table.macs_kept.index(budgets[-1])] > eps)
    return {
        "eps": eps,
        "delta": delta,
        "splits": splits,
        "calibration_images": calibration,
        "images": total,
        "broken": broken / splits,
        "refused": refused / splits,
        "mean_budget": float(np.mean(budgets)) if budgets else None,
        "cheapest_true_budget": next(
            (share for share, rate in zip(model.budget_table.macs_kept, error_rates) if rate <= eps), None
        ),
    }


def disagreements(model: AdaptiveModel, split: Split) -> np.ndarray:
    """Finds the images that each calibration point classifies otherwise than the full network does.

    Args:
      model: with a budget table.
      split: N images.

    Returns:
      bool [calibration points, N].
    """
    full = evaluate(
        model.spec, StaticPolicy(model.spec.largest), model.params, (), split, batch=250
    ).predicted
    rows = []
    for cost_weight in model.budget_table.cost_weights:
        evaluation = evaluate(
            model.spec,
            model.policy,
            model.params,
            PolicyWithCost(model.policy_params, jnp.float32(cost_weight)),
            split,
            batch=250,
            decision_cost=model.decision_cost,
        )
        rows.append(changed_images(evaluation.predicted, full))
    return np.stack(rows)
