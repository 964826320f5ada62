"""Elastic layers against plain arithmetic on the slice that is active, whatever stands in the rest."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prance_jax.models.elastic import dense, fit_channels, layer_norm, mask_channels

FULL, TOKENS = 12, 3
WIDTHS = st.integers(1, FULL)


def draw(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def poisoned(x, widths):
    """Every channel behind an image's width holds 1e6."""
    return jnp.asarray(np.where(np.arange(x.shape[-1]) < np.array(widths)[:, None, None], x, 1e6))


def zero_behind(y, widths):
    return all((np.asarray(y)[image, ..., width:] == 0).all() for image, width in enumerate(widths))


@given(st.lists(st.tuples(WIDTHS, WIDTHS), min_size=2, max_size=2), st.integers(0, 9))
def test_dense_reads_and_writes_leading_slices(sizes, seed):
    x, kernel, bias = draw(seed, 2, TOKENS, FULL), draw(seed + 1, FULL, FULL), draw(seed + 2, FULL)
    width_in, writes = zip(*sizes)
    y = dense(poisoned(x, width_in), kernel, bias, jnp.array(width_in), jnp.array(writes), FULL)
    assert y.shape == (2, TOKENS, FULL) and zero_behind(y, writes)
    for image, (read, write) in enumerate(sizes):
        wanted = x[image, :, :read].astype(np.float64) @ kernel[:read, :write] + bias[:write]
        np.testing.assert_allclose(y[image, :, :write], wanted, rtol=1e-5, atol=1e-5)
        alone = dense(jnp.asarray(x[image : image + 1]), kernel, bias, read, write, FULL)
        assert alone.shape == (1, TOKENS, write)
        np.testing.assert_allclose(alone[0], wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("share", [None, 0.25])
@given(st.lists(st.integers(2, FULL), min_size=2, max_size=2), st.integers(0, 9))
def test_layer_norm_of_the_active_channels(share, widths, seed):
    x, scale, bias = 3 + draw(seed, 2, TOKENS, FULL), draw(seed + 1, FULL), draw(seed + 2, FULL)
    y = layer_norm(poisoned(x, widths), scale, bias, jnp.array(widths), 1e-6, share)
    assert zero_behind(y, widths)
    for image, width in enumerate(widths):
        own = x[image, :, :width].astype(np.float64)
        wanted = (own - own.mean(-1, keepdims=True)) / np.sqrt(own.var(-1, keepdims=True) + 1e-6)
        wanted = wanted * (0.5 if share else 1.0) * scale[:width] + bias[:width]
        np.testing.assert_allclose(y[image, :, :width], wanted, rtol=1e-4, atol=1e-4)
        alone = layer_norm(jnp.asarray(x[image : image + 1]), scale, bias, width, 1e-6, share)
        np.testing.assert_allclose(alone[0], wanted, rtol=1e-4, atol=1e-4)


@given(st.lists(st.tuples(WIDTHS, WIDTHS), min_size=2, max_size=2), st.integers(0, 9))
def test_fit_truncates_or_pads_with_zeros(sizes, seed):
    x = draw(seed, 2, TOKENS, FULL)
    widths, targets = zip(*sizes)
    y = np.asarray(fit_channels(poisoned(x, widths), jnp.array(widths), jnp.array(targets), FULL))
    for image, (width, target) in enumerate(sizes):
        wanted = np.zeros((TOKENS, FULL), np.float32)
        wanted[:, : min(width, target)] = x[image, :, : min(width, target)]
        np.testing.assert_array_equal(y[image], wanted)
        alone = fit_channels(jnp.asarray(x[image : image + 1]), width, target, FULL)
        np.testing.assert_array_equal(alone[0], wanted[:, :target])


def test_nothing_flows_back_into_what_is_inactive():
    """The gradient there is zero and finite, even where the forward pass holds 1e6 or does not vary."""
    widths = jnp.array([5, 1])
    x = poisoned(draw(0, 2, TOKENS, FULL), [5, 1])
    score = lambda x: jnp.sum(jnp.sin(layer_norm(x, jnp.ones(FULL), jnp.ones(FULL), widths, 1e-6)))
    gradient = np.asarray(jax.grad(score)(x))
    assert np.isfinite(gradient).all() and zero_behind(gradient, [5, 1])
    assert np.abs(gradient[0, :, :5]).max() > 0


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_type_of_the_computation_is_kept(dtype):
    x = jnp.ones((2, TOKENS, FULL), dtype)
    weights = jnp.ones((FULL, FULL)), jnp.zeros(FULL)
    for width in (7, jnp.array([7, 3])):
        assert mask_channels(x, width).dtype == dtype
        assert fit_channels(x, width, width, FULL).dtype == dtype
        assert dense(x, *weights, width, width, FULL).dtype == dtype
        assert layer_norm(x, jnp.ones(FULL), jnp.zeros(FULL), width, 1e-6).dtype == dtype
