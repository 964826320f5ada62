"""Elastic widths and the weights that they slice: the same code for compact and masked execution.

A width is one of three things. An int: the array is sliced, inactive channels do not exist (compact). An int32 [B]: the
array keeps its full size, and inactive channels read as zero, whatever they hold (masked). A `BoundedSize`: masked inside a
static slice. A narrow width is always the leading slice.
"""

from __future__ import annotations

from typing import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from prance_jax.core.sizes import Size, array_size, size_value
from prance_jax.spec.model_spec import ModelSpec


def broadcast_width(width: Size, ndim: int) -> jax.Array:
    """Reshapes a width so that it broadcasts against an array.

    Args:
      width: int, int32 [B] or bounded.
      ndim: number of axes of the array.

    Returns:
      float32 [B, 1, ...], or [1, 1, ...] for an int.
    """
    width = jnp.asarray(size_value(width), jnp.float32)
    return width.reshape(width.shape + (1,) * (ndim - width.ndim))


def mask_channels(x: jax.Array, width: Size) -> jax.Array:
    """Keeps the leading channels of the last axis: slices, or writes zeros behind them.

    Args:
      x: [B, ..., C].
      width: channels to keep.
    """
    x = x[..., : array_size(width, x.shape[-1])]
    if isinstance(width, int):
        return x
    return jnp.where(
        jnp.arange(x.shape[-1], dtype=jnp.int32) < broadcast_width(width, x.ndim), x, jnp.zeros((), x.dtype)
    )


def fit_channels(x: jax.Array, width: Size, target: Size, full: int) -> jax.Array:
    """Truncates or zero-pads channels.

    Args:
      x: [B, ..., C].
      width: channels that count.
      target: channels of the result.
      full: channels of a masked array.
    """
    x = mask_channels(x, width)
    missing = array_size(target, full) - x.shape[-1]
    if missing > 0:
        x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, missing)])
    return mask_channels(x[..., : array_size(target, full)], target)


def dense(
    x: jax.Array, kernel: jax.Array, bias: jax.Array, width: Size, target: Size, full: int
) -> jax.Array:
    """Applies an affine map with the leading slice of its weights.

    Computes in the type of `x`, as a product of two matrices (twice as fast on CPU as the batched one).

    Args:
      x: [B, N, C], at least `width` channels.
      kernel: [stored inputs, stored outputs].
      bias: [stored outputs].
      width: channels that count.
      target: channels of the result.
      full: channels of a masked result.
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
    """Applies LayerNorm to the active channels; inactive ones are 0 afterwards.

    Statistics are in float32, the result in the type of `x`.

    Args:
      x: [B, N, C].
      scale: [stored channels].
      bias: [stored channels].
      width: channels that count.
      epsilon: added to the variance.
      share: when given, normalised values are multiplied by its square root (official deployment).
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


def identity_init(key: jax.Array, shape: tuple[int, int], dtype=jnp.float32) -> jax.Array:
    """Initialises a residual map as the plain residual.

    Args:
      key: not used.
      shape: (inputs, outputs).
      dtype: of the result.
    """
    return jnp.eye(*shape, dtype=dtype)


def sincos_init(
    key: jax.Array, shape: tuple[int, int], dtype=jnp.float32, *, grid: tuple[int, int]
) -> jax.Array:
    """Initialises learned positions as 2-D sines and cosines; prefix tokens start at zero.

    Frequencies alternate over the channels, so that every narrow width has all of them.

    Args:
      key: not used.
      shape: (prefix tokens + patches, channels).
      dtype: of the result.
      grid: rows and columns of patches.

    Reference: Beyer et al. 2022, arXiv 2205.01580.
    """
    (tokens, channels), patches = shape, grid[0] * grid[1]
    frequency = 10_000 ** -jnp.linspace(0, 1, max(channels // 4, 1), dtype=dtype)
    angles = jnp.arange(max(grid), dtype=dtype)[:, None] * frequency
    rows = jnp.repeat(angles[: grid[0]], grid[1], axis=0)
    columns = jnp.tile(angles[: grid[1]], (grid[0], 1))
    waves = jnp.stack([jnp.sin(rows), jnp.cos(rows), jnp.sin(columns), jnp.cos(columns)], axis=-1)
    waves = waves.reshape(patches, -1)
    waves = jnp.pad(waves, ((tokens - patches, 0), (0, max(channels - waves.shape[1], 0))))
    return waves[:, :channels]


class AffineWeights(nn.Module):
    """Weights of an affine map, stored whole: kernel [inputs, outputs], bias [outputs].

    Attributes:
      inputs: channels in.
      outputs: channels out.
      kernel_init: initialiser of the kernel.
    """

    inputs: int
    outputs: int
    kernel_init: nn.initializers.Initializer = nn.initializers.xavier_uniform()

    @nn.compact
    def __call__(self) -> tuple[jax.Array, jax.Array]:
        kernel = self.param("kernel", self.kernel_init, (self.inputs, self.outputs), jnp.float32)
        return kernel, self.param("bias", nn.initializers.zeros, (self.outputs,), jnp.float32)


class NormWeights(nn.Module):
    """Weights of a LayerNorm, stored whole: scale and bias [channels].

    Attributes:
      channels: channels that are stored.
    """

    channels: int

    @nn.compact
    def __call__(self) -> tuple[jax.Array, jax.Array]:
        scale = self.param("scale", nn.initializers.ones, (self.channels,), jnp.float32)
        return scale, self.param("bias", nn.initializers.zeros, (self.channels,), jnp.float32)


def apply_norm(spec: ModelSpec, weights: NormWeights, x: jax.Array, width_in: Size, width: Size) -> jax.Array:
    """Applies LayerNorm to the channels that arrive.

    Args:
      spec: the network; official deployment scales the result by sqrt(width / super width).
      weights: scale and bias.
      x: [B, N, C].
      width_in: channels that count.
      width: the chosen width.
    """
    share = broadcast_width(width, x.ndim) / spec.space.super_width if spec.scale_norm else None
    return layer_norm(x, *weights(), width_in, spec.norm_epsilon, share)


def activation(name: str) -> Callable[[jax.Array], jax.Array]:
    """Returns an activation of an MLP by `Architecture.act_layer`; each is 0 at 0, so inactive units stay 0."""
    return {
        "gelu": lambda x: nn.gelu(x, approximate=False),
        "gelu_tanh": lambda x: nn.gelu(x, approximate=True),
        "quick_gelu": lambda x: x * nn.sigmoid(1.702 * x),
        "silu": nn.silu,
    }[name]
