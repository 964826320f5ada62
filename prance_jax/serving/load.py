"""From a trained workdir to an `AdaptiveModel`, calibrated on its validation images."""

from __future__ import annotations

from pathlib import Path

from prance_jax.adaptive.calibrate import calibrate_budget_table, collect_decisions
from prance_jax.adaptive.choose_buckets import choose_buckets
from prance_jax.adaptive.rounding import BucketedPolicy
from prance_jax.core.errors import UserError
from prance_jax.experiments.experiment import Experiment
from prance_jax.experiments.stage_runner import TableEntry
from prance_jax.serving.model import AdaptiveModel
from prance_jax.training.progress import Progress
from prance_jax.training.workdir import Workdir


def load(workdir: str | Path, *, seed: int | None = None, token_mode: str | None = None) -> AdaptiveModel:
    """Loads and calibrates the fine-tuned network and the selector of a finished run.

    Args:
      workdir: folder that the train command wrote.
      seed: one of the seeds of its config; None takes the first.
      token_mode: one of the token modes of its config, such as 'prune'; None takes the first.

    Returns:
      The model, with buckets and budgets calibrated on the validation images.

    Raises:
      UserError: there is no such workdir, seed or mode, or training has not finished.
    """
    config = Workdir(workdir).config()
    seed = config.seeds[0] if seed is None else seed
    mode = token_mode or config.token_modes[0]
    if seed not in config.seeds or mode not in config.token_modes:
        raise UserError(
            f"{workdir} has seeds {config.seeds} and token modes {config.token_modes}, not seed {seed} "
            f"with {mode!r}"
        )
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
    return AdaptiveModel(
        row.params, policy_params, buckets, row.policy, row.decision_cost, budget_table, settings.chunk
    )
