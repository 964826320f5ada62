"""Is the accuracy contract kept? Many random calibrations of one trained model, against what is true of all images."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np

from prance_jax.core.errors import UserError
from prance_jax.data.source import Split
from prance_jax.evaluation.evaluate import evaluate
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
    """Draws `calibration` of the images `splits` times, asks for the contract each time, and counts how often the chosen
    budget disagrees with the full network on more than `eps` of all images.

    The share `broken` must not exceed delta. Raises UserError for a model of one budget, or too few images.
    """
    if model.budget_table is None:
        raise UserError("the contract needs a selector of every budget: train with selector.cost_weights")
    total = len(split.labels)
    if calibration >= total:
        raise UserError(f"contract: {calibration} calibration images of {total} leave nothing to check")
    wrong = disagreements(model, split)
    truth, rng = wrong.mean(axis=1), np.random.default_rng(seed)
    broken, refused, budgets = 0, 0, []
    for _ in range(splits):
        drawn = rng.choice(total, calibration, replace=False)
        found = tuple(int(count) for count in wrong[:, drawn].sum(axis=1))
        budget_table = dataclasses.replace(model.budget_table, disagreements=found, images=calibration)
        try:
            budgets.append(budget_table.certified_budget(eps, delta))
        except UserError:
            refused += 1
            continue
        broken += bool(truth[budget_table.macs_kept.index(budgets[-1])] > eps)
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
            (share for share, rate in zip(model.budget_table.macs_kept, truth) if rate <= eps), None
        ),
    }


def disagreements(model: AdaptiveModel, split: Split) -> np.ndarray:
    """bool [rungs, N]: whether an image is classified otherwise than by the full network."""
    full = evaluate(
        model.spec, StaticPolicy(model.spec.largest), model.params, (), split, batch=250
    ).predicted
    rows = []
    for cost_weight in model.budget_table.cost_weights:
        conditioned_params = PolicyWithCost(model.policy_params, jnp.float32(cost_weight))
        found = evaluate(
            model.spec,
            model.policy,
            model.params,
            conditioned_params,
            split,
            batch=250,
            decision_cost=model.decision_cost,
        )
        rows.append(found.predicted != full)
    return np.stack(rows)
