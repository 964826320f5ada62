"""From a trained workdir to an `AdaptiveModel`, calibrated on its validation images."""

from __future__ import annotations

from pathlib import Path

from prance_jax.adaptive.calibrate import calibrated_budget_table, collect_decisions
from prance_jax.adaptive.choose_buckets import choose_buckets
from prance_jax.adaptive.rounding import BucketedPolicy
from prance_jax.core.errors import UserError
from prance_jax.experiments.experiment import Experiment
from prance_jax.experiments.stage_runner import TableEntry
from prance_jax.serving.model import AdaptiveModel
from prance_jax.training.metrics import Progress
from prance_jax.training.workdir import Workdir


def load(workdir: str | Path, *, seed: int | None = None, token_mode: str | None = None) -> AdaptiveModel:
    """The fine-tuned network and the selector of a workdir that `train` has finished.

    seed, token_mode: of those in its configuration; the first ones by default.
    Raises UserError where there is no such workdir, stage, seed or mode.
    """
    config = Workdir(workdir).config()
    seed = config.seeds[0] if seed is None else seed
    mode = token_mode or config.token_modes[0]
    if seed not in config.seeds or mode not in config.token_modes:
        raise UserError(
            f"{workdir} has seeds {config.seeds} and token modes {config.token_modes}, not seed {seed} with {mode!r}"
        )
    experiment = Experiment(config, Workdir(workdir), Progress(quiet=True), train=False)
    return calibrate(experiment, experiment.prance(seed, mode))


def calibrate(experiment: Experiment, row: TableEntry) -> AdaptiveModel:
    """Plans, and for a selector of every budget the ladder of prices, from the validation images."""
    settings, split = experiment.config.evaluation, experiment.source.split("validation")
    images = split.images[: settings.calibration_images]
    cost_weights = experiment.config.selector.cost_weights
    budget_table, policy_params = None, row.policy_params
    if cost_weights is None:
        found = collect_decisions(row.spec, row.policy, row.params, policy_params, images)
    else:
        budget_table, found = calibrated_budget_table(
            row.spec, row.policy, row.params, policy_params, split, cost_weights, row.decision_cost
        )
    if isinstance(row.policy, BucketedPolicy):
        buckets = row.policy.buckets
    else:
        buckets = choose_buckets(row.spec, found, settings.buckets, settings.token_multiple)
    return AdaptiveModel(
        row.params, policy_params, buckets, row.policy, row.decision_cost, budget_table, settings.chunk
    )
