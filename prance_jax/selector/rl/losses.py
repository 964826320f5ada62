"""The losses of PPO (Schulman et al. 2017, arXiv 1707.06347)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from prance_jax.selector.rl.types import Metrics


def policy_loss(
    log_prob: jax.Array, old_log_prob: jax.Array, advantage: jax.Array, clip: float
) -> tuple[jax.Array, Metrics]:
    """Computes the clipped surrogate loss.

    With rho_t = pi(a_t | s_t) / pi_old(a_t | s_t):

        loss = -mean(min(rho_t A_t, clip(rho_t, 1 - clip, 1 + clip) A_t))

    Args:
      log_prob: float32 [M], joint log-probabilities of the actions under the policy that learns.
      old_log_prob: float32 [M], the same under the policy that took the actions.
      advantage: float32 [M].
      clip: epsilon of the paper.

    Returns:
      The loss, and the metrics `approx_kl`, mean(rho - 1 - log rho), and `clip_fraction`.

    Reference: arXiv 1707.06347, eq. 7.
    """
    log_ratio = log_prob - old_log_prob
    ratio = jnp.exp(log_ratio)
    surrogate = jnp.minimum(ratio * advantage, jnp.clip(ratio, 1 - clip, 1 + clip) * advantage)
    metrics = {
        "approx_kl": jnp.mean(ratio - 1 - log_ratio),
        "clip_fraction": jnp.mean((jnp.abs(ratio - 1) > clip).astype(jnp.float32)),
    }
    return -surrogate.mean(), metrics


def value_loss(value: jax.Array, target: jax.Array) -> jax.Array:
    """Computes half the mean squared error of the critic.

    Args:
      value: float32 [M], values by the critic.
      target: float32 [M], lambda-returns.

    Returns:
      The loss, a scalar.
    """
    return 0.5 * jnp.mean((value - target) ** 2)
