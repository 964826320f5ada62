"""The adaptive model: a function of images, inside and outside of jit, and its errors."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import KEEP, SHORT, make_spec, noisy_params

from prance_jax.adaptive.budget import BudgetTable
from prance_jax.adaptive.calibrate import collect_decisions
from prance_jax.adaptive.choose_buckets import choose_buckets
from prance_jax.config.stages import SelectorConfig
from prance_jax.core.errors import UserError
from prance_jax.models.forward import forward_adaptive
from prance_jax.models.vit import ViT
from prance_jax.selector.policies import PolicyWithCost
from prance_jax.serving.model import AdaptiveModel, _serve_jit
from prance_jax.spec.macs import macs
from prance_jax.training.stages.selector import Selector

SPEC = make_spec("prune", space=SHORT)
IMAGES = jax.random.normal(jax.random.key(8), (11, 16, 16, 3))


def make(cost_weights=None):
    """A selector with a random policy of large weights: structures differ between images."""
    settings = SelectorConfig(updates=1, batch=6, keep_choices=KEEP, hidden=(16,), cost_weights=cost_weights)
    params = noisy_params(SPEC)
    selector = Selector(SPEC, settings, SHORT.first_group("24x2"))
    policy_params = selector.ppo.init(jax.random.key(4)).policy
    policy_params = policy_params._replace(actor=jax.tree.map(lambda leaf: 30 * leaf, policy_params.actor))
    conditioned_params = (
        policy_params if cost_weights is None else PolicyWithCost(policy_params, jnp.float32(0.1))
    )
    buckets = choose_buckets(
        SPEC, collect_decisions(SPEC, selector.policy, params, conditioned_params, np.asarray(IMAGES)), 2, 2
    )
    budget_table = None if cost_weights is None else BudgetTable((0.5, 0.01), (0.3, 0.9), (2, 0), 400)
    return AdaptiveModel(
        params, policy_params, buckets, selector.policy, selector.decision_cost, budget_table, chunk=4
    )


@pytest.fixture(scope="module")
def model():
    return make()


@pytest.fixture(scope="module")
def logits(model):
    """Of the same decisions by masked execution."""
    decide = model.policy.decide(model.policy_params, jax.random.key(0))
    return jax.jit(
        lambda x: forward_adaptive(ViT(SPEC), model.params, x, model.policy.first_choice, decide).logits
    )(IMAGES)


def test_a_call_is_masked_execution_under_the_selector(model, logits):
    np.testing.assert_allclose(model(IMAGES), logits, rtol=0, atol=1e-5 * float(jnp.abs(logits).max()))


def test_it_works_inside_another_jit(model, logits):
    """As an argument: it is a pytree, so that weights are no constants of the program."""
    share = jax.jit(lambda model, images: jax.nn.softmax(model(2 * images / 2)).max(axis=1))
    np.testing.assert_allclose(share(model, IMAGES), jax.nn.softmax(logits).max(axis=1), rtol=1e-4)


def test_explanations_add_up(model, logits):
    explanations = model.explain(IMAGES)
    structure = collect_decisions(SPEC, model.policy, model.params, model.policy_params, np.asarray(IMAGES))
    full = macs(SPEC, SPEC.largest).total
    assert len({explanation.widths for explanation in explanations}) > 3
    for index, explanation in enumerate(explanations):
        chosen = structure.image(index)
        assert explanation.predicted == int(logits[index].argmax())
        assert explanation.macs_kept == pytest.approx(macs(SPEC, chosen, model.decision_cost).total / full)
        assert explanation.widths == chosen.widths and explanation.mlp_dims == chosen.mlp_dims
        for group, tokens_of_patches in zip(range(1, SHORT.groups), explanation.tokens_of_patches):
            num_tokens = explanation.tokens[SHORT.first_layers[group]]
            # CLS and the patches that have a token of their own.
            assert len(set(tokens_of_patches[tokens_of_patches >= 0])) == num_tokens - 1


def test_budgets_reach_the_selector_without_a_new_trace():
    model = make(cost_weights=(0.01, 0.5))
    traces = []

    def run(model, images, budget):
        traces.append(1)
        return model.serve(images, budget)

    program = jax.jit(run)
    for budget, cost_weight in ((0.3, 0.5), (0.9, 0.01)):
        served = program(model, IMAGES, jnp.float32(budget))
        conditioned_params = PolicyWithCost(model.policy_params, jnp.float32(cost_weight))
        expected = collect_decisions(SPEC, model.policy, model.params, conditioned_params, np.asarray(IMAGES))
        jax.tree.map(np.testing.assert_array_equal, served.structure.groups[1:], expected.groups[1:])
    mixed = program(model, IMAGES, jnp.full(11, 0.3).at[4].set(0.9))
    image = jax.tree.map(lambda leaf: leaf[4], mixed.structure.groups[1:])
    jax.tree.map(
        np.testing.assert_array_equal, image, jax.tree.map(lambda leaf: leaf[4], expected.groups[1:])
    )
    assert len(traces) == 2  # a number, and one budget per image
    with pytest.raises(UserError, match="budget 0.2 is outside"):
        model(IMAGES, budget=0.2)


def test_budgets_that_do_not_fit_the_batch_are_refused(model):
    model = dataclasses.replace(model, budget_table=BudgetTable((0.5, 0.01), (0.3, 0.9), (2, 0), 400))
    for budget, words in (
        ([0.4, 0.5], r"shape \(2,\); give one number, or one for each of the 11 images"),
        (np.full((11, 1), 0.5), r"shape \(11, 1\)"),
        ([0.4] * 10 + [None], "budget nan is outside"),
        ([0.4] * 10 + [0.95], "budget 0.95 is outside"),
        ("half", "'half' is no number"),
    ):
        with pytest.raises(UserError, match=words):
            model(IMAGES, budget=budget)
    with pytest.raises(UserError, match=r"shape \(3,\)"):
        jax.eval_shape(lambda budget: model(IMAGES, budget=budget), jnp.full(3, 0.5))


def test_a_hundred_batches_of_other_content_and_budget_compile_once():
    model = make(cost_weights=(0.01, 0.5))
    before = _serve_jit._cache_size()
    for seed in range(100):
        model(jax.random.normal(jax.random.key(seed), (4, 16, 16, 3)), budget=0.3 + 0.006 * seed)
    assert _serve_jit._cache_size() == before + 1


@pytest.mark.parametrize(
    "images, words",
    [
        (np.zeros((2, 8, 8, 3), np.float32), r"shape \(2, 8, 8, 3\); this model takes \[batch, 16, 16, 3\]"),
        (np.zeros((16, 16, 3), np.float32), r"shape \(16, 16, 3\)"),
        (np.zeros((0, 16, 16, 3), np.float32), r"shape \(0, 16, 16, 3\)"),
        (np.zeros((2, 16, 16, 3), np.uint8), "images are uint8; convert"),
        (np.full((2, 16, 16, 3), np.nan, np.float32), "image 0 of the batch has pixels"),
    ],
)
def test_images_that_do_not_fit_are_refused(images, words, model):
    with pytest.raises(UserError, match=words):
        model(images)


def test_a_selector_of_one_budget_takes_no_other(model):
    with pytest.raises(UserError, match="trained for one budget"):
        model(IMAGES, budget=0.5)
