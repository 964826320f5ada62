"""Elastic layers equal plain arithmetic on the active slice, whatever the other channels contain."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prance_jax.models.elastic import dense, fit_channels, layer_norm, mask_channels

FULL, TOKENS = 12, 3
WIDTHS = st.integers(1, FULL)


def sample(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def poisoned(x, widths):
    """Sets the channels behind each image's width to 1e6."""
    return jnp.asarray(np.where(np.arange(x.shape[-1]) < np.array(widths)[:, None, None], x, 1e6))


def is_zero_behind(y, widths):
    return all((np.asarray(y)[image, ..., width:] == 0).all() for image, width in enumerate(widths))


@given(st.lists(st.tuples(WIDTHS, WIDTHS), min_size=2, max_size=2), st.integers(0, 9))
def test_dense_reads_and_writes_leading_slices(sizes, seed):
    x, kernel, bias = sample(seed, 2, TOKENS, FULL), sample(seed + 1, FULL, FULL), sample(seed + 2, FULL)
    widths_in, widths_out = zip(*sizes)
    y = dense(poisoned(x, widths_in), kernel, bias, jnp.array(widths_in), jnp.array(widths_out), FULL)
    assert y.shape == (2, TOKENS, FULL) and is_zero_behind(y, widths_out)
    for image, (width_in, width_out) in enumerate(sizes):
        expected = (
            x[image, :, :width_in].astype(np.float64) @ kernel[:width_in, :width_out] + bias[:width_out]
        )
        np.testing.assert_allclose(y[image, :, :width_out], expected, rtol=1e-5, atol=1e-5)
        single = dense(jnp.asarray(x[image : image + 1]), kernel, bias, width_in, width_out, FULL)
        assert single.shape == (1, TOKENS, width_out)
        np.testing.assert_allclose(single[0], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("share", [None, 0.25])
@given(st.lists(st.integers(2, FULL), min_size=2, max_size=2), st.integers(0, 9))
def test_layer_norm_of_the_active_channels(share, widths, seed):
    x, scale, bias = 3 + sample(seed, 2, TOKENS, FULL), sample(seed + 1, FULL), sample(seed + 2, FULL)
    y = layer_norm(poisoned(x, widths), scale, bias, jnp.array(widths), 1e-6, share)
    assert is_zero_behind(y, widths)
    for image, width in enumerate(widths):
        active = x[image, :, :width].astype(np.float64)
        expected = (active - active.mean(-1, keepdims=True)) / np.sqrt(active.var(-1, keepdims=True) + 1e-6)
        expected = expected * (0.5 if share else 1.0) * scale[:width] + bias[:width]
        np.testing.assert_allclose(y[image, :, :width], expected, rtol=1e-4, atol=1e-4)
        single = layer_norm(jnp.asarray(x[image : image + 1]), scale, bias, width, 1e-6, share)
        np.testing.assert_allclose(single[0], expected, rtol=1e-4, atol=1e-4)


@given(st.lists(st.tuples(WIDTHS, WIDTHS), min_size=2, max_size=2), st.integers(0, 9))
def test_fit_channels_truncates_or_pads_with_zeros(sizes, seed):
    x = sample(seed, 2, TOKENS, FULL)
    widths, targets = zip(*sizes)
    y = np.asarray(fit_channels(poisoned(x, widths), jnp.array(widths), jnp.array(targets), FULL))
    for image, (width, target) in enumerate(sizes):
        expected = np.zeros((TOKENS, FULL), np.float32)
        expected[:, : min(width, target)] = x[image, :, : min(width, target)]
        np.testing.assert_array_equal(y[image], expected)
        single = fit_channels(jnp.asarray(x[image : image + 1]), width, target, FULL)
        np.testing.assert_array_equal(single[0], expected[:, :target])


def test_inactive_channels_have_no_gradient():
    """Their gradient is zero and finite, even where values are 1e6 or constant."""
    widths = jnp.array([5, 1])
    x = poisoned(sample(0, 2, TOKENS, FULL), [5, 1])
    score = lambda x: jnp.sum(jnp.sin(layer_norm(x, jnp.ones(FULL), jnp.ones(FULL), widths, 1e-6)))
    gradient = np.asarray(jax.grad(score)(x))
    assert np.isfinite(gradient).all() and is_zero_behind(gradient, [5, 1])
    assert np.abs(gradient[0, :, :5]).max() > 0


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_dtype_is_kept(dtype):
    x = jnp.ones((2, TOKENS, FULL), dtype)
    weights = jnp.ones((FULL, FULL)), jnp.zeros(FULL)
    for width in (7, jnp.array([7, 3])):
        assert mask_channels(x, width).dtype == dtype
        assert fit_channels(x, width, width, FULL).dtype == dtype
        assert dense(x, *weights, width, width, FULL).dtype == dtype
        assert layer_norm(x, jnp.ones(FULL), jnp.zeros(FULL), width, 1e-6).dtype == dtype
