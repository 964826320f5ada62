"""Generalised advantage estimation (Schulman et al. 2016, arXiv 1506.02438)."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def gae(r_t: jax.Array, v_tm1: jax.Array, weight_tm1: jax.Array, gamma: float, lam: float) -> jax.Array:
    """Estimates the advantages of whole episodes that end by termination.

    With the time index of rlax, for t = 1, ..., T, where the action taken in state tm1 earns r_t
    and leads to state t:

        delta_t = r_t + gamma v_t - v_tm1
        A_tm1   = delta_t + gamma lambda A_t,    v_T = A_T = 0

    An episode that ends early, in state t, has v_t = A_t = 0 there and in all later states.

    Args:
      r_t: float32 [T, B], rewards r_1, ..., r_T; each column is one episode.
      v_tm1: float32 [T, B], values v_0, ..., v_(T-1) of the states in which the actions were taken.
      weight_tm1: float32 [T, B], 1 where the action in state tm1 was taken, 0 after the end.
      gamma: discount.
      lam: lambda; 0 gives the TD error, 1 the discounted return minus the value.

    Returns:
      Advantages A_0, ..., A_(T-1), float32 [T, B], 0 after the end; adding `v_tm1` gives the
      lambda-returns.

    Reference: arXiv 1506.02438, eq. 16.
    """
    r_t, v_tm1 = r_t * weight_tm1, v_tm1 * weight_tm1
    v_t = jnp.concatenate([v_tm1[1:], jnp.zeros_like(v_tm1[:1])])
    delta_t = r_t + gamma * v_t - v_tm1

    def backward(advantage_t, delta_t):
        advantage_tm1 = delta_t + gamma * lam * advantage_t
        return advantage_tm1, advantage_tm1

    _, advantages_tm1 = jax.lax.scan(backward, jnp.zeros_like(delta_t[0]), delta_t, reverse=True)
    return advantages_tm1
