"""Accuracies that belong to a measurement of speed or of stage one."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from prance_jax.evaluation.evaluate import evaluate
from prance_jax.experiments.experiment import Experiment
from prance_jax.experiments.main_table import reduction_entries
from prance_jax.experiments.stage_runner import TableEntry
from prance_jax.selector.policies import RandomPolicy, StaticPolicy
from prance_jax.serving.model import AdaptiveModel
from prance_jax.spec.macs import macs


def served_accuracies(
    experiment: Experiment, model: AdaptiveModel, macs_kept: float, budget: float | None = None
) -> dict[str, float]:
    """Top-1 on the test images, of the experiment's first seed: 'dense', 'adaptive' and the reductions at `macs_kept`."""
    config, split = experiment.config, experiment.source.split("test")
    seed, batch = config.seeds[0], config.evaluation.batch
    spec = experiment.spec(config.token_modes[0])
    rows = [
        TableEntry("dense", spec, experiment.largest, experiment.dense(seed), ()),
        *reduction_entries(experiment, seed, macs_kept * macs(spec, spec.largest).total),
    ]
    found = {row.method: experiment.evaluate(row, "test").top1 for row in rows}
    predicted = []
    for start in range(0, len(split.labels), batch):
        images = split.images[start : start + batch]
        padded = np.pad(images, [(0, batch - len(images))] + [(0, 0)] * 3)
        predicted.append(np.asarray(model(padded, budget)).argmax(-1)[: len(images)])
    found["adaptive"] = float((np.concatenate(predicted) == split.labels).mean())
    return found


def meta_accuracies(experiment: Experiment, seed: int) -> dict[str, float]:
    """Shares of right answers: 'largest', 'smallest' (at the keep rate it was trained at) and 'random', a structure drawn
    for every image and layer from what the selector can choose, behind the fixed first group."""
    spec, settings = experiment.meta_spec, experiment.config.meta
    lattice = experiment.selector(experiment.config.token_modes[0]).lattice
    rules = {
        "largest": (StaticPolicy(spec.largest), ()),
        "smallest": (StaticPolicy(spec.space.smallest((settings.smallest_keep,) * spec.rates)), ()),
        "random": (RandomPolicy(experiment.first_group(), lattice), jnp.float32(0)),
    }
    params, split = experiment.meta(seed), experiment.source.split("test")
    batch = experiment.config.evaluation.batch
    return {
        name: evaluate(spec, policy, params, policy_params, split, batch=batch, mesh=experiment.mesh).top1
        for name, (policy, policy_params) in rules.items()
    }
