"""The segmentation experiment: a dense network on the embedded task, then every reduction as it is and tuned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from prance_jax.config import FinetuneConfig
from prance_jax.data.digit_masks import DigitMasks
from prance_jax.data.digits import Digits
from prance_jax.errors import UserError
from prance_jax.models.reduced import Reduction, reductions
from prance_jax.models.segmenter import Segmenter, segmenter_macs
from prance_jax.training import segment
from prance_jax.training.experiment import Experiment
from prance_jax.training.loop import Stage, run_stage


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


def segmentation(experiment: Experiment, seed: int) -> list[SegmentRow]:
    """All rows of one seed, on the scenes of the test set. Raises UserError for data without masks."""
    source, config = experiment.source, experiment.config.segment
    if not isinstance(source, Digits):
        raise UserError("segmentation is measured on the embedded digits; set data.name to 'digits'")
    spec = experiment.spec(experiment.config.token_modes[0])
    masks = DigitMasks(source)
    model, scenes = Segmenter(spec, masks.classes), masks.split("test", source.config.test_images)
    key = experiment.key(seed, "segment")

    def trained(name: str, settings: FinetuneConfig, reduction: Reduction | None, start: Any) -> Any:
        step = segment.segment_step(spec, masks, settings, reduction)
        fresh = lambda: segment.init(model, settings, key, start)
        stage = Stage(
            f"seed{seed}/segment/{name}",
            settings.steps,
            fresh,
            lambda state, index: step(state, index, key, source.tables, start if start is not None else {}),
            ("loss", "accuracy"),
        )
        seconds, progress = experiment.config.checkpoint_seconds, experiment.progress
        folder = experiment.workdir.checkpoints
        return run_stage(stage, folder, experiment.metrics, checkpoint_seconds=seconds, progress=progress)[
            "ema"
        ]

    dense = trained("dense", config.train, None, None)
    full = segmenter_macs(spec, masks.classes).total
    contenders = [("dense", None, dense)]
    for name in config.methods:
        cost = lambda own: abs(segmenter_macs(spec, masks.classes, own).total - config.share * full)
        reduction = min(reductions(spec, name), key=cost)
        contenders.append((name, reduction, dense))
        if config.tune.steps:
            contenders.append((f"{name}_tuned", reduction, trained(name, config.tune, reduction, dense)))
    rows: list[SegmentRow] = []
    for name, reduction, params in contenders:
        found = segment.evaluate(model, params, scenes, reduction)
        cost = segmenter_macs(spec, masks.classes, reduction).total
        change = found.miou - (rows[0].miou if rows else found.miou)
        rows.append(SegmentRow(name, seed, found.miou, change, found.accuracy, cost / 1e9, cost / full))
    return rows


def table(rows: list[SegmentRow]) -> str:
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
