"""Densities against SciPy, hand numbers and distrax; samples against their own densities."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from prance_jax.selector.rl.distributions import Gaussian, MultiCategorical

OUTPUT = jax.random.normal(jax.random.key(0), (5, 7))
STD = jnp.float32(0.3)


def test_gaussian_density_is_scipys():
    family = Gaussian(7)
    action, log_prob = family.sample(OUTPUT, jax.random.key(1), STD)
    mean = (np.tanh(np.asarray(OUTPUT)) + 1) / 2
    expected = scipy.stats.norm.logpdf(np.asarray(action), mean, 0.3).sum(-1)
    np.testing.assert_allclose(log_prob, expected, rtol=1e-5)
    np.testing.assert_allclose(family.log_prob(OUTPUT, action, STD), log_prob, rtol=1e-6)


def test_gaussian_samples_are_raw_and_centred():
    family = Gaussian(7)
    action, _ = family.sample(jnp.full((20_000, 7), 9.0), jax.random.key(2), STD)
    assert float(action.max()) > 1.0, "raw samples leave [0, 1]; clipping belongs to the decoder"
    np.testing.assert_allclose(action.mean(), 1.0, atol=0.01)
    np.testing.assert_allclose(action.std(), 0.3, atol=0.01)


def test_gaussian_entropy_has_a_gradient_towards_the_middle():
    family = Gaussian(1)
    slope = jax.grad(lambda x: family.entropy(x[None], STD).sum())
    assert float(slope(jnp.array([1.5]))[0]) < 0 < float(slope(jnp.array([-1.5]))[0])
    np.testing.assert_allclose(
        family.entropy(jnp.zeros((1, 1)), STD), scipy.stats.norm.entropy(0, 0.3), rtol=1e-5
    )


def test_multi_categorical_density_by_hand():
    family = MultiCategorical((2, 3))
    output = jnp.log(jnp.array([[0.25, 0.75, 0.5, 0.3, 0.2]]))
    log_prob = family.log_prob(output, jnp.array([[1, 2]]), STD)
    np.testing.assert_allclose(log_prob, np.log(0.75 * 0.2), rtol=1e-5)
    expected = scipy.stats.entropy([0.25, 0.75]) + scipy.stats.entropy([0.5, 0.3, 0.2])
    np.testing.assert_allclose(family.entropy(output, STD), expected, rtol=1e-5)
    np.testing.assert_array_equal(family.mode(output), [[1, 0]])
    assert family.outputs == 5


def test_multi_categorical_samples_follow_their_probabilities():
    family = MultiCategorical((2, 3))
    output = jnp.tile(jnp.log(jnp.array([[0.25, 0.75, 0.5, 0.3, 0.2]])), (40_000, 1))
    action, log_prob = family.sample(output, jax.random.key(3), STD)
    np.testing.assert_allclose(np.bincount(np.asarray(action[:, 0])) / 40_000, [0.25, 0.75], atol=0.01)
    np.testing.assert_allclose(np.bincount(np.asarray(action[:, 1])) / 40_000, [0.5, 0.3, 0.2], atol=0.01)
    np.testing.assert_allclose(family.log_prob(output, action, STD), log_prob, rtol=1e-6)


def test_both_agree_with_distrax():
    distrax = pytest.importorskip("distrax")
    gaussian, categorical = Gaussian(7), MultiCategorical((3, 4))
    action, log_prob = gaussian.sample(OUTPUT, jax.random.key(1), STD)
    oracle = distrax.MultivariateNormalDiag((jnp.tanh(OUTPUT) + 1) / 2, jnp.full_like(OUTPUT, 0.3))
    np.testing.assert_allclose(log_prob, oracle.log_prob(action), rtol=1e-5)
    action, log_prob = categorical.sample(OUTPUT, jax.random.key(1), STD)
    columns = distrax.Categorical(OUTPUT[:, :3]), distrax.Categorical(OUTPUT[:, 3:])
    np.testing.assert_allclose(
        log_prob, sum(p.log_prob(action[:, i]) for i, p in enumerate(columns)), rtol=1e-5
    )
