"""Accuracies that accompany a measurement of speed, or of stage one."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from prance_jax.data.source import check_one_label
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
    """Measures the test accuracy of what `measure_serving` times, with the first seed.

    Args:
      experiment: the trained run.
      model: the same run, loaded for serving.
      macs_kept: share of the dense MACs that the token reductions get.
      budget: of `model`, share of the dense MACs; None for a selector of one budget.

    Returns:
      Share of the images classified correctly by 'dense', 'adaptive' and each reduction.
    """
    check_one_label(experiment.source, "the accuracy of a served model")
    config, split = experiment.config, experiment.source.split("test")
    seed, batch = config.seeds[0], config.evaluation.batch
    spec = experiment.spec(config.token_modes[0])
    entries = [
        TableEntry("dense", spec, experiment.largest, experiment.dense(seed), ()),
        *reduction_entries(experiment, seed, macs_kept * macs(spec, spec.largest).total),
    ]
    accuracies = {entry.method: experiment.evaluate(entry, "test").top1 for entry in entries}
    predicted = []
    for start in range(0, len(split.labels), batch):
        images = split.images[start : start + batch]
        padded = np.pad(images, [(0, batch - len(images))] + [(0, 0)] * 3)
        predicted.append(np.asarray(model(padded, budget)).argmax(-1)[: len(images)])
    accuracies["adaptive"] = float((np.concatenate(predicted) == split.labels).mean())
    return accuracies


def meta_accuracies(experiment: Experiment, seed: int) -> dict[str, float]:
    """Measures structures of the meta-network after stage one, on the test images.

    Args:
      experiment: the run.
      seed: of the run.

    Returns:
      Share of the images classified correctly by 'largest', 'smallest' (at the lowest keep rate of
      its training) and 'random': for every image and layer a structure drawn from the choices of
      the selector, after the fixed first group.
    """
    spec, settings = experiment.meta_spec, experiment.config.meta
    actions = experiment.selector(experiment.config.token_modes[0]).finite_actions
    smallest = spec.space.smallest((settings.smallest_keep,) * spec.rates)
    policies = {
        "largest": (StaticPolicy(spec.largest), ()),
        "smallest": (StaticPolicy(smallest), ()),
        "random": (RandomPolicy(experiment.first_group(), actions), jnp.float32(0)),
    }
    params, split = experiment.meta(seed), experiment.source.split("test")
    batch = experiment.config.evaluation.batch
    return {
        name: evaluate(spec, policy, params, policy_params, split, batch=batch, mesh=experiment.mesh).top1
        for name, (policy, policy_params) in policies.items()
    }
