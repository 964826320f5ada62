"""Arithmetic on token counts; every function takes ints (compact) and arrays [B] (masked) alike."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from prance_jax.core.sizes import BoundedSize, Size, size_value
from prance_jax.tokens.token_set import TokenSet


def at_least(minimum: Size, size: Size) -> Size:
    """Raises a size to a minimum.

    Args:
      minimum: int, or int32 [B].
      size: int, int32 [B] or bounded. A bound stays as it is; the caller guarantees that it holds.
    """
    if isinstance(size, BoundedSize):
        return BoundedSize(jnp.maximum(size.value, minimum), size.bound)
    both_static = isinstance(minimum, int) and isinstance(size, int)
    return max(minimum, size) if both_static else jnp.maximum(minimum, size)


def at_most(maximum: Size, size: Size) -> Size:
    """Lowers a size to a maximum.

    Args:
      maximum: int, or int32 [B].
      size: int, int32 [B] or bounded. A bound stays as it is.
    """
    if isinstance(size, BoundedSize):
        return BoundedSize(jnp.minimum(size.value, maximum), size.bound)
    both_static = isinstance(maximum, int) and isinstance(size, int)
    return min(maximum, size) if both_static else jnp.minimum(maximum, size)


def removes_nothing(tokens: TokenSet, num_keep: Size) -> bool:
    """Returns whether compact execution keeps every token, which is known at trace time.

    Args:
      tokens: tokens before the reduction.
      num_keep: tokens to keep; for an array the answer is always False.
    """
    return isinstance(num_keep, int) and tokens.valid is None and num_keep >= tokens.features.shape[1]


def if_reduced(count: int | jax.Array, num_keep: int | jax.Array, amount: int | jax.Array) -> int | jax.Array:
    """Returns an amount (say, MACs of the reduction) where tokens are removed, else 0.

    Args:
      count: tokens before the reduction, int or [B].
      num_keep: tokens after it, int or [B].
      amount: int or [B].
    """
    if isinstance(count, int) and isinstance(num_keep, int):
        return amount if num_keep < count else 0
    return jnp.where(num_keep < count, amount, 0)


def shift_size(size: Size, by: int) -> Size:
    """Adds a number to a size and to its bound.

    Args:
      size: int, int32 [B] or bounded.
      by: number to add; may be negative.
    """
    return BoundedSize(size.value + by, size.bound + by) if isinstance(size, BoundedSize) else size + by


def column(size: Size) -> int | jax.Array:
    """Returns a size as an int or a column [B, 1], which broadcasts against [B, N]."""
    size = size_value(size)
    return size if isinstance(size, int) else size[:, None]
