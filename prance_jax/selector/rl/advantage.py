"""Generalised advantage estimation (Schulman et al. 2016, arXiv 1506.02438, eq. 16)."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def gae(r_t: jax.Array, v_tm1: jax.Array, gamma: float, lam: float) -> jax.Array:
    """Advantages of whole episodes that end by termination.

    delta_t = r_t + gamma v_t - v_tm1,  A_tm1 = delta_t + gamma lambda A_t,  with v and A zero after the end.

    r_t: rewards [T, B]; v_tm1: values of the states that the actions were taken in [T, B]. Each column is an episode
    of its own. Returns [T, B]; adding v_tm1 gives the lambda-returns.
    """
    v_t = jnp.concatenate([v_tm1[1:], jnp.zeros_like(v_tm1[:1])])
    delta_t = r_t + gamma * v_t - v_tm1

    def back(following, delta):
        advantage = delta + gamma * lam * following
        return advantage, advantage

    _, advantage_tm1 = jax.lax.scan(back, jnp.zeros_like(delta_t[0]), delta_t, reverse=True)
    return advantage_tm1
