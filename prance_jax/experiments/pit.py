"""The pit command's rows: a dense PiT, then tuned from it as it is and with SPViT's selectors in each stage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from prance_jax.baselines.pit_spec import PiTSpec, pit_at_share, pit_macs
from prance_jax.config.stages import FinetuneConfig
from prance_jax.core.sharding import check_batch_sizes
from prance_jax.experiments.experiment import Experiment
from prance_jax.experiments.stage_runner import percent
from prance_jax.training.metrics import read_metrics
from prance_jax.training.stages.pit import init_pit, pit_step, top1

LAST = 100
"""Steps at the end of training over which kept shares are averaged."""


@dataclass(frozen=True)
class PiTRow:
    """macs_kept: of the dense PiT's multiply-accumulates, selectors included. target, kept: per stage, the share of its
    patches that evaluation leaves, and that training drew, mean of its last `LAST` steps; empty without selectors."""

    method: str
    seed: int
    top1: float
    change: float
    gmacs: float
    macs_kept: float
    target: tuple[float, ...]
    kept: tuple[float, ...]


def pit_rows(experiment: Experiment, seed: int) -> list[PiTRow]:
    """All rows of one seed, on the test images."""
    source, config = experiment.source, experiment.config.pit
    check_batch_sizes(
        experiment.mesh, **{"pit.train.batch": config.train.batch, "pit.tune.batch": config.tune.batch}
    )
    spec = config.spec(source)
    train_key, tune_key = jax.random.split(experiment.key(seed, "pit"))

    def trained(name: str, own: PiTSpec, settings: FinetuneConfig, key: jax.Array, *teacher: Any) -> Any:
        return experiment.train_stage(
            f"seed{seed}/pit/{name}",
            settings.steps,
            lambda: init_pit(own, settings, key, *teacher),
            pit_step(own, settings, config.predictor, source.sample, experiment.mesh),
            settings.batch,
            (key, *teacher),
            ("loss", "accuracy"),
        )["ema"]

    dense = trained("dense", spec, config.train, train_key)
    table_entries = [("dense", spec, dense)]
    if config.tune.steps:
        selected = pit_at_share(spec, config.share, config.predictor_blocks, config.powers)
        for name, own in (("dense_tuned", spec), (f"spvit_tuned{percent(config.share)}", selected)):
            table_entries.append((name, own, trained(name, own, config.tune, tune_key, dense)))
    rows: list[PiTRow] = []
    for name, own, params in table_entries:
        found = top1(own, params, source.split("test"), experiment.config.evaluation.batch)
        rows.append(
            PiTRow(
                name,
                seed,
                found,
                found - (rows[0].top1 if rows else found),
                pit_macs(own) / 1e9,
                pit_macs(own) / pit_macs(spec),
                own.keep_rates,
                _drawn(experiment, f"seed{seed}/pit/{name}", config.tune.steps, len(own.predictor_blocks)),
            )
        )
    return rows


def _drawn(experiment: Experiment, stage: str, steps: int, predictor_blocks: int) -> tuple[float, ...]:
    """Mean kept shares of a stage's last steps, from the metrics of the workdir."""
    if not predictor_blocks:
        return ()
    lines = [line for line in read_metrics(experiment.workdir.metrics_file) if line["stage"] == stage]
    last = [line for line in lines if line["step"] > steps - LAST]
    return tuple(float(np.mean([line[f"kept_{site}"] for line in last])) for site in range(predictor_blocks))


def pit_table(rows: list[PiTRow]) -> str:
    """Markdown, a line per method and seed."""
    lines = [
        "| method | seed | top-1 % | change | GMACs | MACs % | kept % in training (target), by stage |",
        "|---|---:|---:|---:|---:|---:|---|",
    ]
    for row in rows:
        shares = [f"{100 * kept:.1f} ({100 * target:.1f})" for kept, target in zip(row.kept, row.target)]
        lines.append(
            f"| {row.method} | {row.seed} | {100 * row.top1:.2f} | {100 * row.change:+.2f} | {row.gmacs:.5f} "
            f"| {100 * row.macs_kept:.1f} | {', '.join(shares) or '-'} |"
        )
    return "\n".join(lines)
