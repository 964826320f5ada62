"""Fine-tuning of the dense network under another method: cached programs, new token predictors."""

import gc
import weakref

import chex
import jax
import jax.numpy as jnp
import numpy as np
from small import drawn_params

from prance_jax.baselines.predictor_config import PredictorConfig
from prance_jax.config.comparison import ChannelPruningConfig, PredictorLossConfig
from prance_jax.config.stages import FinetuneConfig
from prance_jax.models.reduction import reduction_at_macs
from prance_jax.spec.model_spec import ModelSpec
from prance_jax.spec.search_space import SearchSpace
from prance_jax.training.stages.baseline_finetune import PROGRAMS, baseline_step, init_baseline
from prance_jax.training.stages.channel_pruning import prune_step

SPEC = ModelSpec(SearchSpace("mini", 12, 2.0, 3, (6, 12), (1.0, 2.0), (1, 1), head_dim=4), 8, 4, 5)


def alive(steps):
    """Counts the steps that only the cache refers to."""
    references = [weakref.ref(step) for step in steps]
    gc.collect()
    return sum(reference() is not None for reference in references)


def test_a_comparison_does_not_keep_the_program_of_every_method():
    """Thirty compiled steps in one process take more memory mappings than Linux allows."""
    reductions = (
        reduction_at_macs(SPEC, SPEC.largest, name, 1.0)
        for name in ("tome", "evit", "prune", "merge", "ppt", "mctf")
    )
    tuned = (
        baseline_step(SPEC, FinetuneConfig(), PredictorLossConfig(), reduction, None)
        for reduction in reductions
    )
    assert alive(tuned) == PROGRAMS
    pruned = (
        prune_step(SPEC, FinetuneConfig(), ChannelPruningConfig(), keep / 8, None, None)
        for keep in range(1, 7)
    )
    assert alive(pruned) == PROGRAMS


def test_a_new_predictor_begins_at_its_share():
    """With `at_shares` a new predictor keeps 90 %; a given one stays as it is."""
    predictor, key = PredictorConfig(True, (0, 1), (0.9, 0.3), heads=3), jax.random.key(0)
    params = drawn_params(SPEC)
    plain = init_baseline(SPEC, predictor, params, FinetuneConfig(), key)["params"]
    given = {"vit": params, "selector_1": jax.tree.map(jnp.ones_like, plain["selector_1"])}
    state = init_baseline(SPEC, predictor, given, FinetuneConfig(), key, at_shares=True)["params"]
    bias = state["selector_0"]["decide_bias"]
    np.testing.assert_allclose(jax.nn.softmax(bias)[:, 0], 0.9, rtol=1e-6)
    np.testing.assert_array_equal(plain["selector_0"]["decide_bias"], 0.0)
    chex.assert_trees_all_equal(state["selector_1"], given["selector_1"])
    chex.assert_trees_all_equal(state["selector_0"]["decide_kernel"], plain["selector_0"]["decide_kernel"])
