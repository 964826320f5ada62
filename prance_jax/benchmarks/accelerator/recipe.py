"""Trains a config with as many steps as the time allows, and gives its table."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from prance_jax.config import io
from prance_jax.config.experiment import Config
from prance_jax.core.errors import UserError
from prance_jax.data.load import load_source
from prance_jax.data.prefetch import prefetch_to_device
from prance_jax.evaluation.timing import time_interleaved
from prance_jax.experiments.cascade.stages import CascadeStages
from prance_jax.experiments.experiment import Experiment
from prance_jax.results.evaluate_cascade import evaluate_cascade
from prance_jax.results.evaluate_rows import evaluate_rows
from prance_jax.results.table import save_results
from prance_jax.training.progress import Progress
from prance_jax.training.stages.pretrain import dense_step, init_pretrain
from prance_jax.training.workdir import Workdir

# Seconds of a step in seconds of a step of the dense stage at as many images: 5.6, 2.7, 3.6 and 5.0 steps a second of
# configs/cifar10_cascade.py on one CPU core. A step of stage three takes as many times longer as it has walks.
COSTS = {"dense": 1.0, "meta": 2.1, "finetune": 1.6, "compare.finetune": 1.1}
# Share of the time for compilation, the selector, the search and evaluation.
OVERHEAD = 0.5


def train_within(config: Config, seconds: float, folder: str | Path, repeats: int = 10) -> dict[str, Any]:
    """Trains and evaluates the first seed of a config, all stages shortened by one factor to fit the time.

    A step of the dense stage is measured; other stages follow from `COSTS`. The time is a guess, and is not enforced.

    Args:
      config: of a run.
      seconds: time for everything.
      folder: for the workdir, `training_N` with the first free number.
      repeats: measured steps of the dense stage.

    Returns:
      `steps_share` of the config's steps, and for each row of the table top-1 and share of the MACs; `results.json` in
      the workdir has the rest.

    Raises:
      UserError: the time is not enough for 1 % of the steps.
    """
    start = time.monotonic()
    step = _dense_seconds(config, repeats)
    has_looks = config.cascade is not None
    # Of stage three, and of static structures for as many steps; or of all token modes.
    tuned = config.cascade.walks + len(config.cascade.budgets) if has_looks else len(config.token_modes)
    planned = step * (
        config.dense.steps * COSTS["dense"] * config.dense.batch
        + config.meta.steps * COSTS["meta"] * config.meta.batch
        + config.finetune.steps * COSTS["finetune"] * config.finetune.batch * tuned
        + config.compare.finetune.steps * COSTS["compare.finetune"] * config.compare.finetune.batch
    ) / config.dense.batch  # fmt: skip
    left = seconds - (time.monotonic() - start)
    share = min(1.0, (1 - OVERHEAD) * left / planned)
    if share < 0.01:
        raise UserError(
            f"{left:.0f} s are left, and all steps of {config.name} would need about {planned:.0f} s: give more --minutes"
        )
    config = shortened(config, share)
    workdir = Workdir(next(path for path in _folders(folder) if not path.exists()))
    workdir.claim(io.to_dict(config), "benchmark --suite accelerator")
    runner, evaluate = (CascadeStages, evaluate_cascade) if has_looks else (Experiment, evaluate_rows)
    experiment = runner(config, workdir, Progress(quiet=True))
    for results in evaluate(experiment, "benchmark --suite accelerator", lambda: time.monotonic() - start):
        save_results(results, workdir.path)
    rows = {row.method: {"top1": row.top1, "macs_kept": row.macs_kept} for row in results.rows}
    return {"steps_share": share, "dense_steps_per_s": 1 / step, "rows": rows}


def shortened(config: Config, share: float) -> Config:
    """Returns a config of one seed whose stages have a share of their steps, warm-up included.

    Args:
      config: of a run.
      share: of the steps.
    """
    less = lambda number: max(1, round(share * number))

    def shorter(stage):
        optimizer = dataclasses.replace(stage.optimizer, warmup=int(share * stage.optimizer.warmup))
        return dataclasses.replace(stage, steps=less(stage.steps), optimizer=optimizer)

    return dataclasses.replace(
        config,
        seeds=config.seeds[:1],
        dense=shorter(config.dense),
        meta=shorter(config.meta),
        finetune=shorter(config.finetune),
        compare=dataclasses.replace(config.compare, finetune=shorter(config.compare.finetune)),
    )


def _folders(folder: str | Path) -> Iterator[Path]:
    return (Path(folder) / f"training_{number}" for number in itertools.count())


def _dense_seconds(config: Config, repeats: int) -> float:
    """Seconds of a step of the dense stage."""
    source = load_source(config.data)
    spec = config.spec(source, config.token_modes[0])
    state = init_pretrain(spec, config.dense, jax.random.key(0))
    tables = next(prefetch_to_device(source, config.dense.batch))
    step = dense_step(spec, config.dense, source.sample)

    def run():
        nonlocal state
        state, metrics = step(state, jnp.int32(0), jax.random.key(1), tables)
        return metrics

    return min(time_interleaved({"step": run}, repeats)["step"])
