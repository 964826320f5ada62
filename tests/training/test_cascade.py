"""Training steps of a cascade: every weight of every look, every exit and every map of recycled tokens learns."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cascade.examples import SHORT, drawn_images, drawn_params, two_looks
from small import quick_jit

from prance_jax.cascade.passes import forward_look
from prance_jax.cascade.policies import TrainingPolicy
from prance_jax.config.stages import FinetuneConfig, MetaConfig, OptimizerConfig
from prance_jax.spec.cascade import Cascade, Step
from prance_jax.training.optimizer import init_state, make_optimizer
from prance_jax.training.stages.cascade import cascade_finetune_step, cascade_meta_step

SPEC = two_looks(shares="all", space=SHORT, refined_cells=2)
GROUPS = SHORT.uniform(16, 2, (0.6,)).groups
# All exits of both looks, and tokens that are handed on from the exit and from the end of the first one.
CASCADE = Cascade(
    SPEC,
    (
        Step(0, 0, 0, GROUPS[:1]),
        Step(1, 0, 1, GROUPS[1:]),
        Step(1, 1, 0, GROUPS[:1]),
        Step(2, 1, 0, GROUPS[:1]),
        Step(3, 1, 1, GROUPS[1:]),
        Step(4, 1, 1, SHORT.uniform(8, 1, (1.0,)).groups[1:]),
    ),
)
BATCH = 8
OPTIMIZER = OptimizerConfig(warmup=0, max_grad_norm=1e9)


def sample(tables, key, batch):
    """Images and labels of a batch."""
    return tables[0][:batch], tables[1][:batch]


TABLES = drawn_images(SPEC, BATCH), np.arange(BATCH) % 5


def start(config):
    params = jax.tree.map(jnp.asarray, drawn_params(SPEC))
    return init_state(params, make_optimizer(config.optimizer, config.steps))


def gradients(state):
    """Those of the first step: Adam's first moment is 0.1 times the gradient."""
    moments = jax.device_get(optax.tree_utils.tree_get(state["optimizer"], "mu"))
    return jax.tree.map(lambda moment: moment / 0.1, moments)


def assert_all_learn(gradient):
    chex.assert_tree_all_finite(gradient)
    still = [
        jax.tree_util.keystr(path)
        for path, leaf in jax.tree_util.tree_leaves_with_path(gradient)
        if not np.any(leaf)
    ]
    assert not still


@pytest.fixture(scope="module")
def meta():
    config = MetaConfig(steps=10, batch=BATCH, random_batch=4, largest_alone=0.3, optimizer=OPTIMIZER)
    step = cascade_meta_step(SPEC, config, ((0.3, 0.6),), 0.5, sample)
    return lambda index: step(start(config), jnp.int32(index), jax.random.key(0), TABLES)


def test_every_weight_learns_in_stage_one(meta):
    state, metrics = meta(7)
    assert_all_learn(gradients(state))
    chex.assert_tree_all_finite(metrics)
    assert set(metrics) == {"loss", "grad_norm", "accuracy", "accuracy_look_0", "accuracy_random"}


def test_first_steps_of_stage_one_train_the_largest_structure_alone(meta):
    """No tokens are handed on, so their maps stay; every exit learns all the same."""
    gradient = gradients(meta(1)[0])
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradient["recycle_1"]))
    assert_all_learn({name: gradient[name] for name in ("look_0", "look_1")})


def test_without_smaller_structures_stage_one_draws_none():
    """Another key changes nothing, since images and labels are given; the maps of recycled tokens learn all the same."""
    config = MetaConfig(steps=10, batch=BATCH, random_batch=4, optimizer=OPTIMIZER)
    step = cascade_meta_step(SPEC, config, ((0.3, 0.6),), 0.5, sample, is_elastic=False)
    gradient, other = (
        gradients(step(start(config), jnp.int32(7), jax.random.key(seed), TABLES)[0]) for seed in (0, 1)
    )
    chex.assert_trees_all_equal(gradient, other)
    assert_all_learn(gradient)


def test_every_weight_learns_in_stage_three():
    """Every image goes on to the end, by a random step at every exit."""
    config = FinetuneConfig(steps=10, batch=BATCH, optimizer=OPTIMIZER)
    step = cascade_finetune_step(CASCADE, config, TrainingPolicy(CASCADE), sample)
    teacher = drawn_params(SPEC, 3)["look_1"]
    state, metrics = step(start(config), jnp.int32(0), jax.random.key(0), TABLES, (), teacher)
    assert_all_learn(gradients(state))
    chex.assert_tree_all_finite(metrics)


@pytest.mark.parametrize("detach", [False, True])
def test_a_look_learns_from_a_later_one_unless_it_is_detached(detach):
    """The tokens are handed on either way: their map learns."""
    spec = dataclasses.replace(two_looks(space=SHORT), detach=detach)

    def last_answer(params, images):
        first = forward_look(spec, params, images, 0, spec.looks[0].spec.largest)
        second = forward_look(spec, params, images, 1, spec.last.largest, (0, first.state))
        return second.answers[-1].sum()

    gradient = quick_jit(jax.grad(last_answer))(drawn_params(spec), drawn_images(spec, 2))
    assert any(np.any(leaf) for leaf in jax.tree.leaves(gradient["look_0"])) != detach
    assert np.any(gradient["recycle_1"]["patches"]["kernel"])


def test_two_walks_on_a_single_path_are_one():
    """The loss is a mean over answers, so copies of the same path change nothing."""
    config, path = (
        FinetuneConfig(steps=10, batch=BATCH, optimizer=OPTIMIZER),
        Cascade(SPEC, CASCADE.steps[:1]),
    )
    teacher, gradient = drawn_params(SPEC, 3)["look_1"], []
    for walks in (1, 2):
        step = cascade_finetune_step(path, config, TrainingPolicy(path), sample, walks=walks)
        state, _ = step(start(config), jnp.int32(0), jax.random.key(0), TABLES, (), teacher)
        gradient.append(gradients(state))
    chex.assert_trees_all_close(*gradient, atol=1e-6)
