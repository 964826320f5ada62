"""How often what is served is right: the adaptive executor beside the dense network and reductions at its MACs."""

from __future__ import annotations

import numpy as np

from prance_jax.experiments.experiment import Contender, Experiment
from prance_jax.experiments.main_table import reductions
from prance_jax.serving.model import AdaptiveModel
from prance_jax.spec.macs import macs


def accuracies(
    experiment: Experiment, model: AdaptiveModel, macs_kept: float, budget: float | None = None
) -> dict[str, float]:
    """Top-1 on the test images, of the experiment's first seed: 'dense', 'adaptive' and the reductions at `macs_kept`."""
    config, split = experiment.config, experiment.source.split("test")
    seed, batch = config.seeds[0], config.evaluation.batch
    spec = experiment.spec(config.token_modes[0])
    rows = [
        Contender("dense", spec, experiment.largest, experiment.dense(seed), ()),
        *reductions(experiment, seed, macs_kept * macs(spec, spec.largest).total),
    ]
    found = {row.method: experiment.evaluate(row, "test").top1 for row in rows}
    predicted = []
    for start in range(0, len(split.labels), batch):
        images = split.images[start : start + batch]
        padded = np.pad(images, [(0, batch - len(images))] + [(0, 0)] * 3)
        predicted.append(np.asarray(model(padded, budget)).argmax(-1)[: len(images)])
    found["adaptive"] = float((np.concatenate(predicted) == split.labels).mean())
    return found
