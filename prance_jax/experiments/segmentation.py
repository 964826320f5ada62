"""The segmentation experiment: token reductions and PRANCE at the same MACs.

It is an `Experiment` like that of classification, with the same stages, on a source whose labels
are those of pixels. It has its own folder in the workdir.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from prance_jax.config.experiment import Config
from prance_jax.config.stages import DenseConfig
from prance_jax.core.errors import UserError
from prance_jax.evaluation.miou import confusion_matrix, overlap_from_confusion
from prance_jax.experiments.experiment import Experiment
from prance_jax.experiments.stage_runner import TableEntry
from prance_jax.models.reduction import reduction_at_macs
from prance_jax.spec.macs import macs
from prance_jax.training.workdir import Workdir


@dataclass(frozen=True)
class SegmentRow:
    """One method with one seed.

    Attributes:
      method: key of the row, for example ``tome_tuned``.
      seed: of the run.
      miou: mean intersection over union, a share.
      miou_change: miou minus that of the dense segmenter of the same seed.
      accuracy: share of the pixels classified correctly.
      gmacs: mean multiply-accumulates per image, in 1e9.
      macs_kept: gmacs over those of the dense segmenter, head included.
    """

    method: str
    seed: int
    miou: float
    miou_change: float
    accuracy: float
    gmacs: float
    macs_kept: float


def segmentation_config(config: Config) -> Config:
    """Returns the config of the segmentation task, with the settings of `config.segment`.

    Raises:
      UserError: the data are not the embedded digits.
    """
    if config.data.name != "digits":
        raise UserError("segmentation is measured on the embedded digits; set data.name to 'digits'")
    settings, train = config.segment, config.segment.train
    reward = dataclasses.replace(settings.selector.reward, target_macs=settings.share)
    return dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, name="digit_masks"),
        token_modes=settings.token_modes or config.token_modes,
        budgets=(),
        dense=DenseConfig(
            steps=train.steps,
            batch=train.batch,
            label_smoothing=train.label_smoothing,
            optimizer=train.optimizer,
        ),
        meta=settings.meta,
        selector=dataclasses.replace(settings.selector, reward=reward),
        finetune=settings.finetune,
        compare=dataclasses.replace(config.compare, methods=settings.methods, finetune=settings.tune),
    )


def segmentation_experiment(experiment: Experiment) -> Experiment:
    """Returns the segmentation experiment of a run, in the folder 'segment' of its workdir.

    Raises:
      UserError: the data have no masks.
    """
    folder = Workdir(experiment.workdir.path / "segment")
    return Experiment(
        segmentation_config(experiment.config), folder, experiment.progress, train=experiment.train
    )


def segmentation_entries(experiment: Experiment, seed: int) -> list[TableEntry]:
    """Returns all rows of one seed, before they are evaluated.

    Args:
      experiment: from `segmentation_experiment`.
      seed: of the run.
    """
    config, dense = experiment.config.segment, experiment.dense(seed)
    spec = experiment.spec(experiment.config.token_modes[0])
    entries = [TableEntry("dense", spec, experiment.largest, dense, ())]
    for name in config.methods:
        reduction = reduction_at_macs(spec, spec.largest, name, config.share * macs(spec, spec.largest).total)
        entries.append(TableEntry(name, spec, reduction, dense, ()))
        if config.tune.steps:
            params = experiment.finetuned_baseline(seed, name, reduction)
            entries.append(TableEntry(f"{name}_tuned", spec, reduction, params, ()))
    if config.token_modes != ():
        # PRANCE has more steps of training than the dense segmenter. This row shows what stage one adds.
        entries.append(TableEntry("meta_largest", spec, experiment.largest, experiment.meta(seed), ()))
        entries += [experiment.prance(seed, mode) for mode in experiment.config.token_modes]
    return entries


def segmentation_rows(experiment: Experiment, seed: int) -> list[SegmentRow]:
    """Evaluates all rows of one seed on the test images.

    Args:
      experiment: from `segmentation_experiment`.
      seed: of the run.
    """
    rows: list[SegmentRow] = []
    labels = experiment.source.split("test").labels
    for entry in segmentation_entries(experiment, seed):
        evaluation = experiment.evaluate(entry, "test")
        scores = overlap_from_confusion(
            confusion_matrix(labels, evaluation.predicted, entry.spec.num_classes)
        )
        full, mean_macs = macs(entry.spec, entry.spec.largest).total, float(evaluation.macs.mean())
        change = scores.miou - (rows[0].miou if rows else scores.miou)
        figures = scores.miou, change, scores.accuracy, mean_macs / 1e9, mean_macs / full
        rows.append(SegmentRow(entry.method, seed, *figures))
    return rows
