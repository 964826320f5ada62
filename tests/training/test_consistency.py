"""MCTF's consistency loss: values by hand, and its parts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import SHORT, drawn_params, make_spec, quick_jit

from prance_jax.config.comparison import ConsistencyConfig
from prance_jax.config.io import from_dict
from prance_jax.config.stages import FinetuneConfig
from prance_jax.core import losses
from prance_jax.core.errors import UserError
from prance_jax.models.reduction import METHODS, ScheduledReduction, forward_reduced
from prance_jax.models.vit import ViT
from prance_jax.tokens.schedules import Removed
from prance_jax.training.stages.consistency import class_token_distance, consistent_loss, milder_reduction

SPEC = make_spec(space=SHORT)
REDUCTION = ScheduledReduction(METHODS["mctf"], Removed((0, 6, 4)))  # 17, 11, 7, 7 tokens


def test_distance_by_hand():
    """Labels with more than 0.6: the first image (0.75) and, with two mixed labels, the third (0.9)."""
    logits = jnp.log(jnp.asarray([[0.75, 0.15, 0.1], [0.3, 0.6, 0.1], [0.5, 0.1, 0.4]]))
    labels = jnp.asarray([[1.0, 0, 0], [1.0, 0, 0], [0.3, 0, 0.7]])
    class_token, milder = (
        jnp.asarray([[1.0, 3.0], [9.0, 9.0], [0.0, 0.0]]),
        jnp.asarray([[0.0, 1.0], [0, 0], [2.0, 0.0]]),
    )
    assert class_token_distance(class_token, milder, logits, labels, 0.6) == pytest.approx((2.5 + 2.0) / 2)
    assert class_token_distance(class_token, milder, logits, jnp.asarray([0, 0, 0]), 0.6) == pytest.approx(
        2.5
    )
    assert class_token_distance(class_token, milder, logits, labels, 0.95) == 0.0
    gradients = jax.grad(lambda a, b: class_token_distance(a, b, logits, labels, 0.6), argnums=(0, 1))(
        class_token, milder
    )
    np.testing.assert_allclose(gradients[0], np.asarray([[0.5, 1.0], [0, 0], [-1.0, 0]]), rtol=1e-5)
    np.testing.assert_array_equal(gradients[1], 0.0)


def test_the_milder_schedule_removes_a_share_of_the_other():
    tokens_after = np.stack(milder_reduction(REDUCTION, SPEC, 0.5, 200, jax.random.key(0)).num_keep)
    assert (np.diff(tokens_after, axis=0) <= 0).all() and (tokens_after[0] == 17).all()
    # Less than half of 6 and of 10 tokens; every such number for some image.
    assert set(tokens_after[1]) == {15, 16, 17} and set(tokens_after[2]) == {13, 14, 15, 16, 17}
    np.testing.assert_array_equal(tokens_after[3], tokens_after[2])


def test_the_loss_is_both_networks_and_their_distance():
    params = drawn_params(SPEC)
    model, key = ViT(SPEC), jax.random.key(1)
    images = jax.random.normal(jax.random.key(2), (4, 16, 16, 3))
    labels, teacher_logits = jnp.asarray([0, 1, 2, 3]), jax.random.normal(key, (4, 5))
    config = FinetuneConfig(distillation=0.25)

    def loss(params, weight, most):
        consistency = ConsistencyConfig(weight, most, 0.0)
        return consistent_loss(
            model, params, images, labels, teacher_logits, REDUCTION, config, consistency, key
        )[0]

    grad = quick_jit(jax.value_and_grad(loss), static_argnums=(1, 2))
    plain = quick_jit(lambda p: model.apply({"params": p}, images, SPEC.largest))(params)
    under = quick_jit(lambda p: forward_reduced(model, p, images, SPEC.largest, REDUCTION))(params)
    # A milder schedule that removes nothing is the network itself.
    distilled = sum(
        losses.distillation_loss(output, labels, teacher_logits, 0.25) for output in (plain, under.logits)
    )
    alone, gradients = grad(params, 0.0, 0.0)
    assert alone == pytest.approx(float(distilled), rel=1e-5)
    both, both_gradients = grad(params, 3.0, 0.0)
    token = lambda most: quick_jit(
        lambda p: (
            model.apply(
                {"params": p},
                images,
                SPEC.largest,
                milder_reduction(REDUCTION, SPEC, most, 4, key),
                method="forward_reduced",
            ).class_token
        )
    )(params)
    assert both - alone == pytest.approx(
        3 * float(class_token_distance(under.class_token, token(0.0), under.logits, labels, 0.0)), rel=1e-3
    )
    differ = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), gradients, both_gradients)
    assert max(jax.tree.leaves(differ)) > 0


def test_wrong_settings_are_refused():
    for wrong in ({"weight": -1.0}, {"most": 1.5}, {"confidence": 1.0}):
        with pytest.raises(UserError, match=f"{next(iter(wrong))} = .* is out of range"):
            from_dict(ConsistencyConfig, wrong)
