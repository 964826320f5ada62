"""The losses of PPO (Schulman et al. 2017, arXiv 1707.06347)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from prance_jax.selector.rl.types import Metrics
from prance_jax.selector.rl.weighted import weighted_mean


def policy_loss(
    log_prob: jax.Array, old_log_prob: jax.Array, advantage: jax.Array, weight: jax.Array, clip: float
) -> tuple[jax.Array, Metrics]:
    """Computes the clipped surrogate loss.

    With rho_t = pi(a_t | s_t) / pi_old(a_t | s_t) and the weighted mean over decisions:

        loss = -mean(min(rho_t A_t, clip(rho_t, 1 - clip, 1 + clip) A_t))

    Args:
      log_prob: float32 [M], joint log-probabilities of the actions under the policy that learns.
      old_log_prob: float32 [M], the same under the policy that took the actions.
      advantage: float32 [M].
      weight: float32 [M], 0 for decisions that do not count.
      clip: epsilon of the paper.

    Returns:
      The loss, and the metrics `approx_kl`, mean(rho - 1 - log rho), and `clip_fraction`.

    Reference: arXiv 1707.06347, eq. 7.
    """
    # Ratios of decisions that do not count may overflow, and infinity times weight 0 is NaN.
    log_ratio = jnp.where(weight > 0, log_prob - old_log_prob, 0.0)
    ratio = jnp.exp(log_ratio)
    surrogate = jnp.minimum(ratio * advantage, jnp.clip(ratio, 1 - clip, 1 + clip) * advantage)
    is_clipped = (jnp.abs(ratio - 1) > clip).astype(jnp.float32)
    metrics = {
        "approx_kl": weighted_mean(ratio - 1 - log_ratio, weight),
        "clip_fraction": weighted_mean(is_clipped, weight),
    }
    return -weighted_mean(surrogate, weight), metrics


def value_loss(value: jax.Array, target: jax.Array, weight: jax.Array) -> jax.Array:
    """Computes half the weighted mean squared error of the critic.

    Args:
      value: float32 [M], values by the critic.
      target: float32 [M], lambda-returns.
      weight: float32 [M], 0 for decisions that do not count.

    Returns:
      The loss, a scalar.
    """
    return 0.5 * weighted_mean((value - target) ** 2, weight)
