"""Generalised advantage estimation against numbers worked by hand and rlax."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prance_jax.selector.rl.advantage import gae

ONES = jnp.ones((3, 4))


def test_three_steps_by_hand():
    # gamma = 0.5, lambda = 0.5; the value after the end is 0.
    # delta_2 = 4 - 2 = 2;  delta_1 = 2 + 0.5*2 - 1 = 2;  delta_0 = 1 + 0.5*1 - 0 = 1.5
    # A_2 = 2;  A_1 = 2 + 0.25*2 = 2.5;  A_0 = 1.5 + 0.25*2.5 = 2.125
    r, v = jnp.array([[1.0], [2.0], [4.0]]), jnp.array([[0.0], [1.0], [2.0]])
    np.testing.assert_allclose(gae(r, v, jnp.ones((3, 1)), 0.5, 0.5)[:, 0], [2.125, 2.5, 2.0], rtol=1e-6)


def test_an_early_end_by_hand():
    # gamma = 0.5, lambda = 0.5; image 0 ends after the first of two steps, image 1 after the second.
    # Image 0: A_0 = 3 - 1 = 2, whatever stands in the second row.
    # Image 1: A_1 = 2 - 4 = -2;  A_0 = 3 + 0.5*4 - 1 + 0.25*(-2) = 3.5
    r, v = jnp.array([[3.0, 3.0], [100.0, 2.0]]), jnp.array([[1.0, 1.0], [50.0, 4.0]])
    weight = jnp.array([[1.0, 1.0], [0.0, 1.0]])
    np.testing.assert_allclose(gae(r, v, weight, 0.5, 0.5), [[2.0, 3.5], [0.0, -2.0]], rtol=1e-6)


def test_an_episode_that_ends_early_is_a_shorter_episode():
    r, v = jax.random.normal(jax.random.key(3), (2, 4, 2))
    weight = jnp.array([[1.0, 1.0], [1.0, 1.0], [0.0, 1.0], [0.0, 1.0]])
    advantage = gae(r, v, weight, 0.9, 0.8)
    np.testing.assert_array_equal(advantage[:2, 0], gae(r[:2], v[:2], ONES[:2, :2], 0.9, 0.8)[:, 0])
    np.testing.assert_array_equal(advantage[:, 1], gae(r, v, jnp.ones((4, 2)), 0.9, 0.8)[:, 1])


def test_lambda_one_is_the_discounted_return_and_zero_the_td_error():
    r, v = jax.random.normal(jax.random.key(0), (2, 3, 4))
    returns = np.stack([r[0] + 0.9 * r[1] + 0.81 * r[2], r[1] + 0.9 * r[2], r[2]])
    np.testing.assert_allclose(gae(r, v, ONES, 0.9, 1.0) + v, returns, rtol=1e-5)
    np.testing.assert_allclose(gae(r, v, ONES, 0.9, 0.0)[-1], r[-1] - v[-1], rtol=1e-5)


def test_episodes_do_not_touch_each_other():
    r, v = jax.random.normal(jax.random.key(1), (2, 3, 4))
    together = gae(r, v, ONES, 0.9, 0.9)
    for image in range(4):
        alone = gae(r[:, image : image + 1], v[:, image : image + 1], ONES[:, :1], 0.9, 0.9)
        np.testing.assert_array_equal(together[:, image], alone[:, 0])


def test_agrees_with_rlax():
    rlax = pytest.importorskip("rlax")
    r, v = jax.random.normal(jax.random.key(2), (2, 3, 4))
    for image in range(4):
        values = jnp.append(v[:, image], 0.0)
        expected = rlax.truncated_generalized_advantage_estimation(r[:, image], jnp.full(3, 0.9), 0.8, values)
        np.testing.assert_allclose(gae(r, v, ONES, 0.9, 0.8)[:, image], expected, rtol=1e-5, atol=1e-6)
