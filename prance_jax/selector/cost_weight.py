"""The cost weight: how much reward is lost for one dense network of multiply-accumulates.

It is the Lagrange multiplier of the budget. A selector that serves every budget receives it as an
input and is trained with one sampled per image. Useful values span two orders of magnitude and go
below zero: where more compute no longer helps, only a negative weight makes a selector spend a
large budget. So weights are sampled, observed and interpolated evenly on the scale s =
asinh(cost_weight / 0.01). It is linear around zero and a logarithm far from it.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

ASINH_SCALE = 0.01
"""Cost weights well below this are on the linear part of the scale."""


def cost_weight_to_asinh(cost_weight: jax.Array | float) -> jax.Array:
    """Returns s = asinh(cost_weight / 0.01), float32, as the selector observes it."""
    return jnp.arcsinh(jnp.asarray(cost_weight, jnp.float32) / ASINH_SCALE)


def cost_weight_from_asinh(scaled: jax.Array) -> jax.Array:
    """Returns 0.01 x sinh(s), the inverse of `cost_weight_to_asinh`."""
    return ASINH_SCALE * jnp.sinh(scaled)


def sample_cost_weights(key: jax.Array, cost_weights: tuple, batch: int) -> jax.Array:
    """Samples cost weights, uniformly on the asinh scale.

    Args:
      key: random key.
      cost_weights: (lowest, highest) cost weight.
      batch: number of samples, B.

    Returns:
      float32 [B].
    """
    low, high = map(cost_weight_to_asinh, cost_weights)
    return cost_weight_from_asinh(
        jax.random.uniform(key, (batch,), minval=low, maxval=high, dtype=jnp.float32)
    )


def reward_scale(cost_weight: jax.Array) -> jax.Array:
    """Returns the factor on rewards at a cost weight, 1 / sqrt(|cost_weight| + 0.01).

    The best action at a cost weight does not change. Without the factor an update learns next to
    nothing from episodes with a small cost weight; with the factor 1 / cost_weight it learns little
    from the others.
    """
    return jax.lax.rsqrt(jnp.abs(cost_weight) + ASINH_SCALE)
