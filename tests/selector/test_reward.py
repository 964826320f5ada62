"""Quality, utility, reward and dual ascent against numbers worked by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from prance_jax.core.errors import UserError
from prance_jax.selector.reward import (
    RewardConfig,
    compute_reward,
    prediction_quality,
    update_cost_weight,
    utility,
)


def test_quality_by_hand():
    logits = jnp.log(jnp.array([[0.7, 0.3], [0.2, 0.8], [0.6, 0.4]]))
    full = jnp.log(jnp.array([[0.9, 0.1], [0.9, 0.1], [0.1, 0.9]]))
    labels = jnp.array([0, 0, 0])  # the full network is right, right, wrong
    score = lambda **config: np.asarray(prediction_quality(RewardConfig(**config), logits, labels, full))
    np.testing.assert_allclose(score(quality="correct"), [1, 0, 1])
    np.testing.assert_allclose(score(quality="probability"), [0.7, 0.2, 1], rtol=1e-5)
    np.testing.assert_allclose(score(quality="probability", reward_mending=True), [0.7, 0.2, 0.6], rtol=1e-5)
    first = -(0.9 * np.log(0.9 / 0.7) + 0.1 * np.log(0.1 / 0.3))
    second = -(0.9 * np.log(0.9 / 0.2) + 0.1 * np.log(0.1 / 0.8))
    third = -(0.1 * np.log(0.1 / 0.6) + 0.9 * np.log(0.9 / 0.4))
    np.testing.assert_allclose(
        score(quality="agreement", agreement_floor=1.0), [first, -1.0, third], rtol=1e-4
    )
    assert second < -1.0


def test_reward_and_cost_weight_by_hand():
    utility_t = utility(jnp.array([1.0]), jnp.array([0.5]), jnp.float32(0.2))
    keep_t, utility_tm1 = (jnp.array([0.4]), jnp.array([0.5])), jnp.array([0.7])
    np.testing.assert_allclose(
        compute_reward(RewardConfig(keep_weight=0.1), utility_t, utility_tm1, keep_t),
        1 - 0.2 * 0.5 - 0.1 * 0.9,
        rtol=1e-6,
    )
    marginal = RewardConfig(keep_weight=0.0, marginal=True)
    np.testing.assert_allclose(
        compute_reward(marginal, utility_t, utility_tm1, keep_t), 1 - 0.2 * 0.5 - 0.7, rtol=1e-5
    )
    dual = RewardConfig(target_macs=0.4, cost_weight_rate=0.5)
    np.testing.assert_allclose(
        update_cost_weight(dual, jnp.float32(0.2), jnp.float32(0.6)), 0.2 * np.exp(0.1), rtol=1e-6
    )
    assert float(update_cost_weight(RewardConfig(), jnp.float32(0.2), jnp.float32(0.6))) == pytest.approx(0.2)


def test_unknown_settings_are_refused():
    with pytest.raises(UserError, match="reward: quality = 'accuracy' is not known; choose one of 'correct'"):
        RewardConfig(quality="accuracy")
    with pytest.raises(UserError, match="reward: cost = 'time' is not known; choose one of 'macs'"):
        RewardConfig(cost="time")
    with pytest.raises(
        UserError, match="reward: target_macs = 1.5 is out of range; it should be above 0 and up to 1"
    ):
        RewardConfig(target_macs=1.5)
