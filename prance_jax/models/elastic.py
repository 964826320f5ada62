"""Elastic widths: one piece of code for every execution.

A width is an int (compact: the array is sliced, inactive channels do not exist), int32 [B] (masked: the array keeps
its full extent and inactive channels read as zero, whatever they hold), or `Within` (masked inside a static slice).
A narrow width is always the leading slice.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from prance_jax.core.sizes import Size, array_size, size_value


def broadcast_width(width: Size, ndim: int) -> jax.Array:
    """A width as float32 [B, 1, ...] (all ones for an int or a scalar), broadcastable to an array of `ndim` axes."""
    width = jnp.asarray(size_value(width), jnp.float32)
    return width.reshape(width.shape + (1,) * (ndim - width.ndim))


def mask_channels(x: jax.Array, width: Size) -> jax.Array:
    """The leading `width` channels of the last axis: sliced, or zeros behind them. x: [B, ..., C]."""
    x = x[..., : array_size(width, x.shape[-1])]
    if isinstance(width, int):
        return x
    return jnp.where(jnp.arange(x.shape[-1]) < broadcast_width(width, x.ndim), x, jnp.zeros((), x.dtype))


def fit_channels(x: jax.Array, width: Size, target: Size, full: int) -> jax.Array:
    """Truncates or zero-pads from `width` to `target` channels. full: extent of a masked array."""
    x = mask_channels(x, width)
    missing = array_size(target, full) - x.shape[-1]
    if missing > 0:
        x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, missing)])
    return mask_channels(x[..., : array_size(target, full)], target)


def dense(
    x: jax.Array, kernel: jax.Array, bias: jax.Array, width: Size, target: Size, full: int
) -> jax.Array:
    """An affine map from `width` to `target` channels with the leading slice of its weights.

    x: [B, N, >= width]; kernel: [super in, super out]; full: extent of a masked result. Computes in x's dtype, as a
    product of two matrices (twice as fast on CPU as the batched one).
    """
    x = mask_channels(x, width)
    outputs = array_size(target, full)
    y = x.reshape(-1, x.shape[-1]) @ kernel[: x.shape[-1], :outputs].astype(x.dtype)
    y = y + bias[:outputs].astype(x.dtype)
    return mask_channels(y.reshape(*x.shape[:-1], outputs), target)


def layer_norm(
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    width: Size,
    epsilon: float,
    share: jax.Array | None = None,
) -> jax.Array:
    """LayerNorm over the active channels; inactive ones are 0 afterwards. Statistics in float32, result in x's dtype.

    share: when given, normalised values are multiplied by its square root (official deployment), see `width_share`.
    """
    dtype = x.dtype
    x = mask_channels(x.astype(jnp.float32), width)
    if isinstance(width, int):
        centred = x - x.mean(-1, keepdims=True)
        variance = jnp.mean(centred * centred, -1, keepdims=True)
    else:
        channels = broadcast_width(width, x.ndim)
        centred = mask_channels(x - x.sum(-1, keepdims=True) / channels, width)
        variance = jnp.sum(centred * centred, -1, keepdims=True) / channels
    y = centred * jax.lax.rsqrt(variance + epsilon)
    if share is not None:
        y = y * jnp.sqrt(share)
    y = y * scale[: x.shape[-1]] + bias[: x.shape[-1]]
    return mask_channels(y, width).astype(dtype)
