"""MCTF's consistency: by hand, and what it is made of."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import SHORT, drawn_params, make_spec, quick_jit

from prance_jax.config.comparison import ConsistencyConfig
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
    """Images of whose label the network is sure by more than 0.6: the first (0.75) and, of two mixed labels, the third (0.9)."""
    logits = jnp.log(jnp.asarray([[0.75, 0.15, 0.1], [0.3, 0.6, 0.1], [0.5, 0.1, 0.4]]))
    labels = jnp.asarray([[1.0, 0, 0], [1.0, 0, 0], [0.3, 0, 0.7]])
    own, other = (
        jnp.asarray([[1.0, 3.0], [9.0, 9.0], [0.0, 0.0]]),
        jnp.asarray([[0.0, 1.0], [0, 0], [2.0, 0.0]]),
    )
    assert class_token_distance(own, other, logits, labels, 0.6) == pytest.approx((2.5 + 2.0) / 2)
    assert class_token_distance(own, other, logits, jnp.asarray([0, 0, 0]), 0.6) == pytest.approx(2.5)
    assert class_token_distance(own, other, logits, labels, 0.95) == 0.0
    moves = jax.grad(lambda a, b: class_token_distance(a, b, logits, labels, 0.6), argnums=(0, 1))(own, other)
    np.testing.assert_allclose(moves[0], np.asarray([[0.5, 1.0], [0, 0], [-1.0, 0]]), rtol=1e-5)
    np.testing.assert_array_equal(moves[1], 0.0)


def test_the_milder_schedule_removes_a_part_of_the_other():
    tokens_after = np.stack(milder_reduction(REDUCTION, SPEC, 0.5, 200, jax.random.key(0)).num_keep)
    assert (np.diff(tokens_after, axis=0) <= 0).all() and (tokens_after[0] == 17).all()
    # Of 6 and of 10 tokens less than a half, every number of them for some image.
    assert set(tokens_after[1]) == {15, 16, 17} and set(tokens_after[2]) == {13, 14, 15, 16, 17}
    np.testing.assert_array_equal(tokens_after[3], tokens_after[2])


def test_the_loss_is_both_networks_and_their_distance():
    params = drawn_params(SPEC)
    model, key = ViT(SPEC), jax.random.key(1)
    images = jax.random.normal(jax.random.key(2), (4, 16, 16, 3))
    labels, wanted = jnp.asarray([0, 1, 2, 3]), jax.random.normal(key, (4, 5))
    config = FinetuneConfig(distillation=0.25)

    def loss(params, weight, most):
        own = ConsistencyConfig(weight, most, 0.0)
        return consistent_loss(model, params, images, labels, wanted, REDUCTION, config, own, key)[0]

    grad = quick_jit(jax.value_and_grad(loss), static_argnums=(1, 2))
    plain = quick_jit(lambda p: model.apply({"params": p}, images, SPEC.largest))(params)
    under = quick_jit(lambda p: forward_reduced(model, p, images, SPEC.largest, REDUCTION))(params)
    # Nothing removed in the milder one: the network itself.
    taught = sum(losses.distillation_loss(own, labels, wanted, 0.25) for own in (plain, under.logits))
    alone, moves = grad(params, 0.0, 0.0)
    assert alone == pytest.approx(float(taught), rel=1e-5)
    both, pulled = grad(params, 3.0, 0.0)
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
    differ = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), moves, pulled)
    assert max(jax.tree.leaves(differ)) > 0


def test_settings_that_make_no_sense():
    for wrong in ({"weight": -1.0}, {"most": 1.5}, {"confidence": 1.0}):
        with pytest.raises(UserError, match="compare.consistency"):
            ConsistencyConfig(**wrong)
