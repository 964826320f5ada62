"""The losses of PPO (Schulman et al. 2017, arXiv 1707.06347)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from prance_jax.selector.rl.types import Metrics


def policy_loss(
    log_prob: jax.Array, behaviour: jax.Array, advantage: jax.Array, clip: float
) -> tuple[jax.Array, Metrics]:
    """The clipped surrogate (eq. 7) on joint log-probabilities; all arguments [M]. Returns the loss and metrics."""
    log_ratio = log_prob - behaviour
    ratio = jnp.exp(log_ratio)
    surrogate = jnp.minimum(ratio * advantage, jnp.clip(ratio, 1 - clip, 1 + clip) * advantage)
    metrics = {
        "approx_kl": jnp.mean(ratio - 1 - log_ratio),
        "clip_fraction": jnp.mean((jnp.abs(ratio - 1) > clip).astype(jnp.float32)),
    }
    return -surrogate.mean(), metrics


def value_loss(value: jax.Array, target: jax.Array) -> jax.Array:
    """Half the mean squared error; [M] each."""
    return 0.5 * jnp.mean((value - target) ** 2)
