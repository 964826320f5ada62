"""Reduced tokens back on the grid of patches, for heads that predict something everywhere."""

from __future__ import annotations

import functools
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from prance_jax.tokens.token_set import TokenSet

Fill = Literal["nearest", "zero"]


def unmerge(tokens: TokenSet, fill: Fill = "nearest", last: jax.Array | None = None) -> jax.Array:
    """Features of every original patch, [B, P, C]: those of the token that carries it now.

    A patch that was dropped gets what `last` holds for it ([B, P, C], see `remember`), if given; else the features of the
    nearest patch that is still carried (by distance on the grid, ties to the lower index), or with fill 'zero' zeros.
    """
    token_of_patch = tokens.token_of_patch
    if last is None and fill == "nearest":
        carried = token_of_patch >= 0
        apart = jnp.where(carried[:, None, :], jnp.asarray(_distances(token_of_patch.shape[1])), np.inf)
        source = jnp.argmin(apart, axis=2)
        # With nothing left but CLS there is no nearest patch.
        token_of_patch = jnp.where(
            carried.any(axis=1, keepdims=True), jnp.take_along_axis(token_of_patch, source, axis=1), 0
        )
    features = jnp.take_along_axis(tokens.features, jnp.maximum(token_of_patch, 0)[:, :, None], axis=1)
    instead = jnp.zeros_like(features) if last is None else last.astype(features.dtype)
    return jnp.where((token_of_patch >= 0)[:, :, None], features, instead)


def last_features(last: jax.Array, before: TokenSet, after: TokenSet) -> jax.Array:
    """The last features of every patch that is not carried any more, [B, P, C]: `last`, and of those that go between
    `before` and `after` their features in `before`."""
    goes = (before.token_of_patch >= 0) & (after.token_of_patch < 0)
    features = jnp.take_along_axis(before.features, jnp.maximum(before.token_of_patch, 0)[:, :, None], axis=1)
    return jnp.where(goes[:, :, None], features.astype(last.dtype), last)


@functools.lru_cache(maxsize=None)
def _distances(patches: int) -> np.ndarray:
    """[P, P] float32, squared distances on a square grid."""
    side = round(patches**0.5)
    new_index = np.stack(np.divmod(np.arange(patches), side), axis=1).astype(np.float32)
    return ((new_index[:, None] - new_index[None]) ** 2).sum(axis=2)
