"""Puts reduced tokens back on the grid of patches, for heads with dense predictions."""

from __future__ import annotations

import functools
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from prance_jax.tokens.token_set import TokenSet

Fill = Literal["nearest", "zero"]


def unmerge(tokens: TokenSet, fill: Fill = "nearest", last: jax.Array | None = None) -> jax.Array:
    """Returns features of every original patch, [B, P, C]: those of the token that contains it.

    Args:
      tokens: reduced tokens.
      fill: what pruned patches get where `last` is None: 'nearest', the features of the nearest
        patch that still has a token (by distance on the grid, ties to the lower index); or 'zero'.
      last: [B, P, C], features for pruned patches, see `last_features`.
    """
    token_of_patch = tokens.token_of_patch
    if last is None and fill == "nearest":
        has_token = token_of_patch >= 0
        distance = jnp.where(
            has_token[:, None, :], jnp.asarray(_squared_distances(token_of_patch.shape[1])), np.inf
        )
        nearest = jnp.argmin(distance, axis=2)
        # If only CLS remains, there is no nearest patch.
        token_of_patch = jnp.where(
            has_token.any(axis=1, keepdims=True), jnp.take_along_axis(token_of_patch, nearest, axis=1), 0
        )
    features = jnp.take_along_axis(tokens.features, jnp.maximum(token_of_patch, 0)[:, :, None], axis=1)
    fallback = jnp.zeros_like(features) if last is None else last.astype(features.dtype)
    return jnp.where((token_of_patch >= 0)[:, :, None], features, fallback)


def last_features(last: jax.Array, before: TokenSet, after: TokenSet) -> jax.Array:
    """Returns the last features that every pruned patch had, [B, P, C].

    Args:
      last: [B, P, C], the result for earlier reductions.
      before: tokens before a reduction.
      after: tokens after it. Patches that it prunes get their features in `before`.
    """
    is_pruned_now = (before.token_of_patch >= 0) & (after.token_of_patch < 0)
    features = jnp.take_along_axis(before.features, jnp.maximum(before.token_of_patch, 0)[:, :, None], axis=1)
    return jnp.where(is_pruned_now[:, :, None], features.astype(last.dtype), last)


@functools.lru_cache(maxsize=None)
def _squared_distances(patches: int) -> np.ndarray:
    """float32 [P, P], squared distances on a square grid."""
    side = round(patches**0.5)
    position = np.stack(np.divmod(np.arange(patches), side), axis=1).astype(np.float32)
    return ((position[:, None] - position[None]) ** 2).sum(axis=2)
