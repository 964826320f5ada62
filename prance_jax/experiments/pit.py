"""The rows of the pit command: dense PiT, fine-tuned, and with SPViT's token predictors."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from prance_jax.baselines.pit_spec import PiTSpec, pit_at_share, pit_macs
from prance_jax.config.stages import FinetuneConfig
from prance_jax.core.sharding import check_batch_sizes, fetch_local
from prance_jax.data.source import Split, check_one_label
from prance_jax.experiments.experiment import Experiment
from prance_jax.experiments.stage_runner import budget_suffix
from prance_jax.training.metrics import read_metrics
from prance_jax.training.stages.pit import init_pit, pit_step, top1

LAST = 100
"""Steps at the end of training over which kept shares are averaged."""


@dataclass(frozen=True)
class PiTRow:
    """One network with one seed.

    Attributes:
      method: key of the row, for example ``spvit_tuned_60``.
      seed: of the run.
      top1: share of the images classified correctly.
      change: top1 minus that of the dense PiT of the same seed.
      gmacs: multiply-accumulates per image, in 1e9.
      macs_kept: gmacs over those of the dense PiT, token predictors included.
      target: per stage, the share of its patches that evaluation keeps; empty without token
        predictors.
      kept: per stage, the share that training kept, mean of its last `LAST` steps; empty without
        token predictors.
    """

    method: str
    seed: int
    top1: float
    change: float
    gmacs: float
    macs_kept: float
    target: tuple[float, ...]
    kept: tuple[float, ...]


def pit_rows(experiment: Experiment, seed: int) -> list[PiTRow]:
    """Trains and evaluates all rows of one seed on the test images.

    Args:
      experiment: the run.
      seed: of the run.
    """
    source, config = experiment.source, experiment.config.pit
    check_one_label(source, "the command pit")
    check_batch_sizes(
        experiment.mesh, **{"pit.train.batch": config.train.batch, "pit.tune.batch": config.tune.batch}
    )
    dense_spec = config.spec(source)
    train_key, tune_key = jax.random.split(experiment.key(seed, "pit"))

    def accuracy(spec: PiTSpec, params: Any, split: Split) -> float:
        return top1(spec, params, split, experiment.config.evaluation.batch)

    def validate(spec: PiTSpec, state: Any) -> dict[str, float]:
        return {"val_accuracy": accuracy(spec, fetch_local(state["ema"]), experiment.validation_split)}

    def trained(name: str, spec: PiTSpec, settings: FinetuneConfig, key: jax.Array, *teacher: Any) -> Any:
        return experiment.train_stage(
            f"seed{seed}/pit/{name}",
            settings.steps,
            lambda: init_pit(spec, settings, key, *teacher),
            pit_step(spec, settings, config.predictor, source.sample, experiment.mesh),
            settings.batch,
            (key, *teacher),
            ("loss", "accuracy"),
            functools.partial(validate, spec),
        )["ema"]

    dense = trained("dense", dense_spec, config.train, train_key)
    entries = [("dense", dense_spec, dense)]
    if config.tune.steps:
        with_predictors = pit_at_share(dense_spec, config.share, config.predictor_blocks, config.powers)
        method = f"spvit_tuned{budget_suffix(config.share)}"
        for name, spec in (("dense_tuned", dense_spec), (method, with_predictors)):
            entries.append((name, spec, trained(name, spec, config.tune, tune_key, dense)))
    rows: list[PiTRow] = []
    for name, spec, params in entries:
        test_accuracy = accuracy(spec, params, source.split("test"))
        num_macs, num_predictors = pit_macs(spec), len(spec.predictor_blocks)
        rows.append(
            PiTRow(
                name,
                seed,
                test_accuracy,
                test_accuracy - (rows[0].top1 if rows else test_accuracy),
                num_macs / 1e9,
                num_macs / pit_macs(dense_spec),
                spec.keep_rates,
                _kept(experiment, f"seed{seed}/pit/{name}", config.tune.steps, num_predictors),
            )
        )
    return rows


def _kept(experiment: Experiment, stage: str, steps: int, num_predictors: int) -> tuple[float, ...]:
    """Mean kept shares of a stage's last steps, from the metrics of the workdir."""
    if not num_predictors:
        return ()
    lines = [line for line in read_metrics(experiment.workdir.metrics_file) if line["stage"] == stage]
    last = [line for line in lines if line["step"] > steps - LAST]
    return tuple(float(np.mean([line[f"kept_{index}"] for line in last])) for index in range(num_predictors))
