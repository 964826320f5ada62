"""The price of compute, for a selector that serves every budget.

A price is what one dense network of multiply-accumulates costs in units of quality. Those that matter span two orders of
magnitude and go on below zero: where more compute no longer helps, only being paid for it makes a selector spend a
large budget. The inverse hyperbolic sine is linear around zero and a logarithm far from it, so prices are drawn, shown
to the selector and interpolated evenly in it.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

LINEAR = 0.01  # prices below this are small


def cost_weight_level(cost_weight: jax.Array | float) -> jax.Array:
    """A price as the selector sees it, float32."""
    return jnp.arcsinh(jnp.asarray(cost_weight, jnp.float32) / LINEAR)


def cost_weight_at(level: jax.Array) -> jax.Array:
    """The inverse of `level`."""
    return LINEAR * jnp.sinh(level)


def sample_cost_weights(key: jax.Array, cost_weights: tuple, batch: int) -> jax.Array:
    """float32 [batch] between (lowest, highest), evenly in `level`."""
    low, high = map(cost_weight_level, cost_weights)
    return cost_weight_at(jax.random.uniform(key, (batch,), minval=low, maxval=high))


def reward_scale(cost_weight: jax.Array) -> jax.Array:
    """What rewards at a price are multiplied by: 1 / sqrt of its size.

    What is best at a price does not change; without it an update learns next to nothing from episodes at which compute
    is cheap, with 1 / price little from the others.
    """
    return jax.lax.rsqrt(jnp.abs(cost_weight) + LINEAR)
