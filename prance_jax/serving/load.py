"""From a trained workdir to an `AdaptiveModel`, calibrated on its validation images."""

from __future__ import annotations

from pathlib import Path

from prance_jax.adaptive.calibrate import calibrated_ladder, decisions
from prance_jax.adaptive.choose_buckets import choose_plans
from prance_jax.adaptive.rounding import RoundedRule
from prance_jax.core.errors import UserError
from prance_jax.experiments.experiment import Experiment
from prance_jax.experiments.stage_runner import Contender
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


def calibrate(experiment: Experiment, row: Contender) -> AdaptiveModel:
    """Plans, and for a selector of every budget the ladder of prices, from the validation images."""
    settings, split = experiment.config.evaluation, experiment.source.split("validation")
    images = split.images[: settings.calibration_images]
    prices = experiment.config.selector.prices
    ladder, policy = None, row.variables
    if prices is None:
        found = decisions(row.spec, row.rule, row.params, policy, images)
    else:
        ladder, found = calibrated_ladder(
            row.spec, row.rule, row.params, policy, split, prices, row.decision_cost
        )
    if isinstance(row.rule, RoundedRule):
        plans = row.rule.plans
    else:
        plans = choose_plans(row.spec, found, settings.plans, settings.token_multiple)
    return AdaptiveModel(row.params, policy, plans, row.rule, row.decision_cost, ladder, settings.chunk)
