"""Tuning under a method: what is kept of it once it is done."""

import gc
import weakref

import chex
import jax
import jax.numpy as jnp
import numpy as np
from small import drawn_params

from prance_jax.baselines.predictor_config import PredictorConfig
from prance_jax.config.comparison import PredictorLossConfig, PruneConfig
from prance_jax.config.stages import FinetuneConfig
from prance_jax.models.reduction import at_macs
from prance_jax.spec.model_spec import ModelSpec
from prance_jax.spec.search_space import SearchSpace
from prance_jax.training.stages.baseline_finetune import PROGRAMS, baseline_step, init_baseline
from prance_jax.training.stages.channel_pruning import prune_step

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
    tuned = (baseline_step(SPEC, FinetuneConfig(), PredictorLossConfig(), own, None) for own in reductions)
    assert alive(tuned) == PROGRAMS
    pruned = (prune_step(SPEC, FinetuneConfig(), PruneConfig(), keep / 8, None, None) for keep in range(1, 7))
    assert alive(pruned) == PROGRAMS


def test_a_fresh_selector_begins_at_its_share():
    """Where that is asked for: 90 % are kept when its weights say nothing yet; one that is known stays as it is."""
    what, key = PredictorConfig(True, (0, 1), (0.9, 0.3), heads=3), jax.random.key(0)
    params = drawn_params(SPEC)
    plain = init_baseline(SPEC, what, params, FinetuneConfig(), key)["params"]
    known = {"vit": params, "selector_1": jax.tree.map(jnp.ones_like, plain["selector_1"])}
    state = init_baseline(SPEC, what, known, FinetuneConfig(), key, at_shares=True)["params"]
    bias = state["selector_0"]["decide_bias"]
    np.testing.assert_allclose(jax.nn.softmax(bias)[:, 0], 0.9, rtol=1e-6)
    np.testing.assert_array_equal(plain["selector_0"]["decide_bias"], 0.0)
    chex.assert_trees_all_equal(state["selector_1"], known["selector_1"])
    chex.assert_trees_all_equal(state["selector_0"]["decide_kernel"], plain["selector_0"]["decide_kernel"])
