"""From a trained workdir to an `AdaptiveModel`, calibrated on its validation images."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from prance_jax import config_io
from prance_jax.complexity import macs
from prance_jax.config import Config
from prance_jax.errors import UserError
from prance_jax.inference.budget import Ladder
from prance_jax.inference.calibrate import calibrated_plans, decisions
from prance_jax.inference.model import AdaptiveModel
from prance_jax.inference.plans import choose_plans
from prance_jax.evaluation.evaluate import evaluate
from prance_jax.selector.decide import Priced, StaticRule
from prance_jax.space import Structure
from prance_jax.training.experiment import Contender, Experiment
from prance_jax.training.metrics import Progress
from prance_jax.training.workdir import Workdir

RUNGS = 17


def load(workdir: str | Path, *, seed: int | None = None, token_mode: str | None = None) -> AdaptiveModel:
    """The fine-tuned network and the selector of a workdir that `train` has finished.

    seed, token_mode: of those in its configuration; the first ones by default.
    Raises UserError where there is no such workdir, stage, seed or mode.
    """
    config = config_io.from_dict(Config, Workdir(workdir).config())
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
    ladder = None
    if prices is None:
        plans = calibrated_plans(
            row.spec, row.rule, row.params, row.variables, images, settings.plans, settings.token_multiple
        )
    else:
        ladder, structures = _ladder(row, split, prices)
        plans = choose_plans(row.spec, structures, settings.plans, settings.token_multiple)
    policy = row.variables
    return AdaptiveModel(row.params, policy, plans, row.rule, row.decision_cost, ladder, settings.chunk)


def _ladder(row: Contender, split, prices: tuple[float, float]) -> tuple[Ladder, Structure]:
    """Runs the validation images at every rung; also gives what was decided on a share of them at each."""
    full = float(macs(row.spec, row.spec.largest).total)
    wanted = evaluate(row.spec, StaticRule(row.spec.largest), row.params, (), split, batch=250).predicted
    shares, disagreements, drawn = [], [], []
    ladder = np.geomspace(prices[1], prices[0], RUNGS)
    for price in ladder:
        variables = Priced(row.variables, jnp.float32(price))
        found = evaluate(
            row.spec, row.rule, row.params, variables, split, batch=250, decision_cost=row.decision_cost
        )
        shares.append(float(found.macs.mean()) / full)
        disagreements.append(int((found.predicted != wanted).sum()))
        drawn.append(decisions(row.spec, row.rule, row.params, variables, split.images[:250]))
    groups = jax.tree.map(
        lambda *parts: np.concatenate(parts), *(structure.groups[1:] for structure in drawn)
    )
    shares = np.maximum.accumulate(shares)
    found = Ladder(
        *(tuple(column.tolist()) for column in (ladder, shares, np.array(disagreements))), len(split.labels)
    )
    return found, Structure((row.rule.first, *groups))
