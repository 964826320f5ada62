"""The segmentation experiment: dense, every reduction as it is and tuned, and PRANCE, all at the same MACs.

It is an `Experiment` like that of classification, with the same stages, on a source whose labels are of pixels; it has a folder
of its own in the run's.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from prance_jax.config.experiment import Config
from prance_jax.config.stages import DenseConfig
from prance_jax.core.errors import UserError
from prance_jax.evaluation.miou import confusion_matrix, from_confusion
from prance_jax.experiments.experiment import Experiment
from prance_jax.experiments.stage_runner import TableEntry
from prance_jax.models.reduction import at_macs
from prance_jax.spec.macs import macs
from prance_jax.training.workdir import Workdir


@dataclass(frozen=True)
class SegmentRow:
    """miou, accuracy (of pixels): shares. macs_kept: of the dense segmenter's multiply-accumulates, head included."""

    method: str
    seed: int
    miou: float
    miou_change: float
    accuracy: float
    gmacs: float
    macs_kept: float


def segmentation_config(config: Config) -> Config:
    """The same experiment on the embedded segmentation task, with the settings of `config.segment`."""
    if config.data.name != "digits":
        raise UserError("segmentation is measured on the embedded digits; set data.name to 'digits'")
    own, train = config.segment, config.segment.train
    reward = dataclasses.replace(own.selector.reward, target_macs=own.share)
    return dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, name="digit_masks"),
        token_modes=own.token_modes or config.token_modes,
        budgets=(),
        dense=DenseConfig(train.steps, train.batch, train.label_smoothing, train.optimizer),
        meta=own.meta,
        selector=dataclasses.replace(own.selector, reward=reward),
        finetune=own.finetune,
        compare=dataclasses.replace(config.compare, methods=own.methods, finetune=own.tune),
    )


def segmentation_experiment(experiment: Experiment) -> Experiment:
    """The segmentation experiment of a run. Raises UserError for data without masks."""
    folder = Workdir(experiment.workdir.path / "segment")
    return Experiment(
        segmentation_config(experiment.config), folder, experiment.progress, train=experiment.train
    )


def segmentation_entries(pixels: Experiment, seed: int) -> list[TableEntry]:
    """All rows of one seed; pixels: a `segmentation` experiment."""
    config, dense = pixels.config.segment, pixels.dense(seed)
    spec = pixels.spec(pixels.config.token_modes[0])
    rows = [TableEntry("dense", spec, pixels.largest, dense, ())]
    for name in config.methods:
        reduction = at_macs(spec, spec.largest, name, config.share * macs(spec, spec.largest).total)
        rows.append(TableEntry(name, spec, reduction, dense, ()))
        if config.tune.steps:
            params = pixels.tuned(seed, name, reduction)
            rows.append(TableEntry(f"{name}_tuned", spec, reduction, params, ()))
    if config.token_modes != ():
        # It has had more steps than the dense one: what they alone are worth.
        rows.append(TableEntry("meta_largest", spec, pixels.largest, pixels.meta(seed), ()))
        rows += [pixels.prance(seed, mode) for mode in pixels.config.token_modes]
    return rows


def segmentation_rows(pixels: Experiment, seed: int) -> list[SegmentRow]:
    """All rows of one seed, on the test set; pixels: a `segmentation` experiment."""
    rows: list[SegmentRow] = []
    truth = pixels.source.split("test").labels
    for row in segmentation_entries(pixels, seed):
        found = pixels.evaluate(row, "test")
        overlap = from_confusion(confusion_matrix(truth, found.predicted, row.spec.num_classes))
        full, spent = macs(row.spec, row.spec.largest).total, float(found.macs.mean())
        change = overlap.miou - (rows[0].miou if rows else overlap.miou)
        figures = overlap.miou, change, overlap.accuracy, spent / 1e9, spent / full
        rows.append(SegmentRow(row.method, seed, *figures))
    return rows


def segmentation_table(rows: list[SegmentRow]) -> str:
    """Markdown, a line per method and seed."""
    lines = [
        "| method | seed | mIoU % | change | pixels % | GMACs | MACs % |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        lines.append(
            f"| {row.method} | {row.seed} | {100 * row.miou:.2f} | {100 * row.miou_change:+.2f} | {100 * row.accuracy:.2f} "
            f"| {row.gmacs:.5f} | {100 * row.macs_kept:.1f} |"
        )
    return "\n".join(lines)
