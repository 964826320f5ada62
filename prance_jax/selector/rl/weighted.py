"""Weighted means, by which decisions after an episode's end do not count."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def weighted_mean(x: jax.Array, weight: jax.Array, axis: int | None = None) -> jax.Array:
    """Computes sum(weight x) / sum(weight); 0 where all weights are 0.

    Args:
      x: float32 array, finite also where the weight is 0.
      weight: float32, not negative; of as many axes as `x`, each of the same length or 1.
      axis: axis of the mean; its length must be the same in both. None for all axes of equal shapes.
    """
    return jnp.sum(x * weight, axis) / jnp.maximum(jnp.sum(weight, axis), 1e-8)


def weighted_variance(x: jax.Array, weight: jax.Array, axis: int | None = None) -> jax.Array:
    """Computes the weighted mean of the squared distance to the weighted mean.

    Args:
      x: as in `weighted_mean`.
      weight: as in `weighted_mean`.
      axis: as in `weighted_mean`.
    """
    # Not from the mean of squares: the difference loses float32's digits where the mean is large.
    return weighted_mean((x - weighted_mean(x, weight, axis)) ** 2, weight, axis)
