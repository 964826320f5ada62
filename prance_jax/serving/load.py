"""From a trained workdir to a model, calibrated on its validation images."""

from __future__ import annotations

import os
from numbers import Integral
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prance_jax.adaptive.budget import BudgetTable
from prance_jax.adaptive.calibrate import calibrate_budget_table, collect_decisions
from prance_jax.adaptive.choose_buckets import choose_buckets
from prance_jax.adaptive.rounding import BucketedPolicy
from prance_jax.cascade.policies import SelectorDecisions
from prance_jax.cascade.routing import route, selector_actions
from prance_jax.cascade.table import stop_nodes
from prance_jax.core.errors import UserError
from prance_jax.core.fields import check_type
from prance_jax.experiments.cascade.stages import CascadeStages
from prance_jax.experiments.experiment import Experiment
from prance_jax.experiments.stage_runner import TableEntry
from prance_jax.selector.cost_weight import cost_weight_from_asinh, cost_weight_to_asinh
from prance_jax.serving.cascade_model import CascadeModel, dearest_node
from prance_jax.serving.model import AdaptiveModel
from prance_jax.training.progress import Progress
from prance_jax.training.workdir import Workdir


def load(
    workdir: str | Path, *, seed: int | None = None, token_mode: str | None = None
) -> AdaptiveModel | CascadeModel:
    """Loads and calibrates the fine-tuned network and the selector of a finished run.

    Args:
      workdir: folder that the train command wrote.
      seed: one of the seeds of its config; None takes the first.
      token_mode: one of the token modes of its config, such as 'prune'; None takes the first.

    Returns:
      The model, calibrated on the validation images: a `CascadeModel` if the config has the section `cascade`, else an
      `AdaptiveModel` with its buckets.

    Raises:
      UserError: there is no such workdir, seed or mode, or training has not finished.
    """
    check_type(workdir, "load: workdir", str, os.PathLike)
    check_type(seed, "load: seed", Integral, type(None))
    check_type(token_mode, "load: token_mode", str, type(None))
    config = Workdir(workdir).config()
    seed = config.seeds[0] if seed is None else seed
    mode = config.token_modes[0] if token_mode is None else token_mode
    if seed not in config.seeds or mode not in config.token_modes:
        raise UserError(
            f"{workdir} has seeds {config.seeds} and token modes {config.token_modes}, not seed {seed} "
            f"with {mode!r}"
        )
    if config.cascade is not None:
        stages = CascadeStages(config, Workdir(workdir), Progress(quiet=True), train=False)
        return build_cascade_model(stages, seed)
    experiment = Experiment(config, Workdir(workdir), Progress(quiet=True), train=False)
    return build_adaptive_model(experiment, experiment.prance(seed, mode))


def build_adaptive_model(experiment: Experiment, row: TableEntry) -> AdaptiveModel:
    """Builds an `AdaptiveModel` from a trained row, calibrated on the validation images.

    Args:
      experiment: gives settings and validation images.
      row: network and selector.

    Returns:
      The model. Its buckets are chosen from the selector's decisions, or are those that the
      decisions are rounded up to. Its budget table is measured if the selector serves every budget.
    """
    settings, split = experiment.config.evaluation, experiment.source.split("validation")
    images = split.images[: settings.calibration_images]
    cost_weights = experiment.config.selector.cost_weights
    budget_table, policy_params = None, row.policy_params
    if cost_weights is None:
        decisions = collect_decisions(row.spec, row.policy, row.params, policy_params, images)
    else:
        budget_table, decisions = calibrate_budget_table(
            row.spec, row.policy, row.params, policy_params, split, cost_weights, row.decision_cost
        )
    if isinstance(row.policy, BucketedPolicy):
        buckets = row.policy.buckets
    else:
        buckets = choose_buckets(row.spec, decisions, settings.buckets, settings.token_multiple)
    params, policy_params = _on_no_device((row.params, policy_params))
    return AdaptiveModel(
        params, policy_params, buckets, row.policy, row.decision_cost, budget_table, settings.chunk
    )


def build_cascade_model(experiment: CascadeStages, seed: int, num_points: int = 33) -> CascadeModel:
    """Builds a `CascadeModel` from a trained run, its budgets calibrated on the validation images.

    Args:
      experiment: the run.
      seed: one of its seeds.
      num_points: cost weights that are tried, evenly on the asinh scale.
    """
    cascade, params = experiment.cascade(seed), experiment.cascade_params(seed)
    decisions = SelectorDecisions(cascade, experiment.table_ppo(cascade))
    policy_params = experiment.table_policy(seed, max(1, experiment.settings.rounds))
    table = experiment.held_out_table(cascade, params)
    reference = np.asarray(table.predicted)[:, dearest_node(cascade)]
    rows = np.arange(len(reference))
    points: list[tuple[float, float, int]] = []
    scaled = np.linspace(*map(cost_weight_to_asinh, experiment.settings.selector.cost_weights), num_points)
    for cost_weight in np.asarray(cost_weight_from_asinh(scaled))[::-1]:
        actions = selector_actions(cascade, decisions.ppo, policy_params, table, float(cost_weight))
        routed = route(table, stop_nodes(cascade, actions))
        changed = int((np.asarray(table.predicted)[rows, routed.node] != reference).sum())
        share = float(routed.cost.mean())
        # A point that spends no more than one before it is left out: every budget has one cost weight.
        if not points or share > points[-1][1]:
            points.append((float(cost_weight), share, changed))
    budgets = BudgetTable(*zip(*points), len(reference))
    # The dearest paths cost more than the dense network: without a budget, the largest one of the config is meant.
    default_budget = float(np.clip(max(experiment.settings.budgets), *budgets.range))
    params, policy_params = _on_no_device((params, policy_params))
    chunk = experiment.config.evaluation.chunk
    return CascadeModel(params, policy_params, decisions, budgets, default_budget, chunk)


def _on_no_device(tree: Any) -> Any:
    """Copies restored arrays, which belong to one device, so that they may go to any (`shard`)."""
    return jax.tree.map(jnp.asarray, jax.device_get(tree))
