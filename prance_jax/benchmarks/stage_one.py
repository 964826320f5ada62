"""How good stage one's network is at its largest, its smallest and at random structures, on the test images."""

from __future__ import annotations

import jax.numpy as jnp

from prance_jax.evaluation.evaluate import evaluate
from prance_jax.experiments.experiment import Experiment
from prance_jax.selector.policies import RandomRule, StaticRule


def accuracies(experiment: Experiment, seed: int) -> dict[str, float]:
    """Shares of right answers: 'largest', 'smallest' (at the keep rate it was trained at) and 'random', a structure drawn
    for every image and layer from what the selector can choose, behind the fixed first group."""
    spec, settings = experiment.meta_spec, experiment.config.meta
    lattice = experiment.selector(experiment.config.token_modes[0]).lattice
    rules = {
        "largest": (StaticRule(spec.largest), ()),
        "smallest": (StaticRule(spec.space.smallest((settings.smallest_keep,) * spec.rates)), ()),
        "random": (RandomRule(experiment.first_group(), lattice), jnp.float32(0)),
    }
    params, split = experiment.meta(seed), experiment.source.split("test")
    batch = experiment.config.evaluation.batch
    return {
        name: evaluate(spec, rule, params, variables, split, batch=batch, mesh=experiment.mesh).top1
        for name, (rule, variables) in rules.items()
    }
