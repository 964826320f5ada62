"""Similarity of tokens."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def cosine_similarity(a: jax.Array, b: jax.Array) -> jax.Array:
    """Returns the cosine similarity of all pairs, float32 [B, S, D].

    Args:
      a: [B, S, C].
      b: [B, D, C].
    """
    a, b = (x.astype(jnp.float32) for x in (a, b))
    a, b = (x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, -1, keepdims=True), 1e-12)) for x in (a, b))
    return jnp.einsum("bsc,bdc->bsd", a, b)
