"""Weights: by hand, and with all ones the plain formulas by NumPy."""

import jax
import jax.numpy as jnp
import numpy as np

from prance_jax.selector.rl.losses import policy_loss, value_loss
from prance_jax.selector.rl.types import RunningStatistics
from prance_jax.selector.rl.weighted import weighted_mean, weighted_variance


def test_mean_and_variance_by_hand():
    # Values 1, 5, 9 with weights 3, 1, 0: mean 8 / 4, variance (3*1 + 1*9) / 4.
    x, weight = jnp.array([1.0, 5.0, 9.0]), jnp.array([3.0, 1.0, 0.0])
    np.testing.assert_allclose(weighted_mean(x, weight), 2.0)
    np.testing.assert_allclose(weighted_variance(x, weight), 3.0)
    assert float(weighted_mean(x, jnp.zeros(3))) == 0.0, "no division by zero"


def test_losses_by_hand():
    # Ratios 1.5, 0.5 and one that overflows, of weight 0; advantages 1, -1; clip 0.2.
    # min(1.5, 1.2) = 1.2, min(-0.5, -0.8) = -0.8: mean 0.2, both clipped.
    log_prob, old_log_prob = jnp.log(jnp.array([0.3, 0.2, 1.0])), jnp.log(jnp.array([0.2, 0.4, 1.0]))
    log_prob, advantage = log_prob.at[2].set(200.0), jnp.array([1.0, -1.0, -7.0])
    weight = jnp.array([1.0, 1.0, 0.0])
    loss, metrics = policy_loss(log_prob, old_log_prob, advantage, weight, 0.2)
    np.testing.assert_allclose(loss, -0.2, rtol=1e-5)
    np.testing.assert_allclose(metrics["clip_fraction"], 1.0)
    kl = (0.5 - np.log(1.5) - 0.5 - np.log(0.5)) / 2
    np.testing.assert_allclose(metrics["approx_kl"], kl, rtol=1e-4)
    # Clipped ratios have no gradient, decisions of weight 0 neither.
    gradient = jax.grad(lambda log_prob: policy_loss(log_prob, old_log_prob, advantage, weight, 0.2)[0])
    np.testing.assert_array_equal(gradient(log_prob), [0.0, 0.0, 0.0])
    # 0.5 * ((1 - 3)^2 + (2 - 2)^2) / 2 = 1
    value, target = jnp.array([1.0, 2.0, 50.0]), jnp.array([3.0, 2.0, -50.0])
    np.testing.assert_allclose(value_loss(value, target, weight), 1.0)


def test_weights_of_one_give_the_plain_formulas():
    log_prob, old_log_prob, advantage, value = np.asarray(jax.random.normal(jax.random.key(0), (4, 50)))
    ones = jnp.ones(50)
    ratio = np.exp(log_prob - old_log_prob)
    surrogate = np.minimum(ratio * advantage, np.clip(ratio, 0.8, 1.2) * advantage)
    loss, metrics = policy_loss(log_prob, old_log_prob, advantage, ones, 0.2)
    np.testing.assert_allclose(loss, -surrogate.mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["clip_fraction"], (np.abs(ratio - 1) > 0.2).mean(), rtol=1e-6)
    np.testing.assert_allclose(metrics["approx_kl"], (ratio - 1 - log_prob + old_log_prob).mean(), rtol=1e-5)
    np.testing.assert_allclose(
        value_loss(value, advantage, ones), 0.5 * ((value - advantage) ** 2).mean(), rtol=1e-5
    )
    np.testing.assert_allclose(weighted_mean(value, ones), value.mean(), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(weighted_variance(value, ones), value.var(), rtol=1e-5)


def test_statistics_ignore_rows_of_weight_zero():
    parts = jax.random.normal(jax.random.key(0), (3, 5, 8, 2)) * 3 + 1
    weight = jax.random.bernoulli(jax.random.key(1), 0.6, (3, 5, 8)).astype(jnp.float32)
    parts = jnp.where(weight[..., None] > 0, parts, 1e4)
    running = RunningStatistics(jnp.float32(0), jnp.zeros(2), jnp.ones(2))
    empty = running.update(parts[0], jnp.zeros((5, 8)))
    assert float(empty.count) == 0.0 and np.isfinite(np.asarray(empty.variance)).all()
    for part, part_weight in zip(parts, weight):
        running = running.update(part, part_weight)
    real = np.asarray(parts)[np.asarray(weight) > 0]
    assert float(running.count) == len(real)
    np.testing.assert_allclose(running.mean, real.mean(0), rtol=1e-4)
    np.testing.assert_allclose(running.variance, real.var(0), rtol=1e-4)
