"""Tuning under a method: what is kept of it once it is done."""

import gc
import weakref

from prance_jax.config_field import PruneConfig, SelectiveConfig
from prance_jax.config_stages import FinetuneConfig
from prance_jax.models.reduced import at_macs
from prance_jax.space import SearchSpace
from prance_jax.spec import ModelSpec
from prance_jax.training.prune_channels import prune_step
from prance_jax.training.tune import PROGRAMS, tune_step

SPEC = ModelSpec(SearchSpace("mini", 12, 2.0, 3, (6, 12), (1.0, 2.0), (1, 1), head_dim=4), 8, 4, 5)


def alive(steps):
    """How many of these steps are still there once nobody else holds one."""
    known = [weakref.ref(step) for step in steps]
    gc.collect()
    return sum(own() is not None for own in known)


def test_a_comparison_does_not_keep_the_program_of_every_method():
    """Thirty compiled steps in one process take more memory mappings than Linux allows."""
    reductions = (
        at_macs(SPEC, SPEC.largest, name, 1.0) for name in ("tome", "evit", "prune", "merge", "ppt", "mctf")
    )
    tuned = (tune_step(SPEC, FinetuneConfig(), SelectiveConfig(), own, None) for own in reductions)
    assert alive(tuned) == PROGRAMS
    pruned = (prune_step(SPEC, FinetuneConfig(), PruneConfig(), keep / 8, None, None) for keep in range(1, 7))
    assert alive(pruned) == PROGRAMS
