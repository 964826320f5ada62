"""Between tokens and the grid of patches.

`unmerge` puts reduced tokens back on the grid. `CellSplit` goes the other way: tokens of single patches where it matters,
and of cells of 2 x 2 patches elsewhere.
"""

from __future__ import annotations

import functools
import math
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from prance_jax.tokens.token_set import TokenSet, descending_rank

Fill = Literal["nearest", "zero"]


def unmerge(
    tokens: TokenSet,
    fill: Fill = "nearest",
    last: jax.Array | None = None,
    grid: tuple[int, int] | None = None,
) -> jax.Array:
    """Returns features of every original patch, [B, P, C]: those of the token that contains it.

    Args:
      tokens: reduced tokens.
      fill: what pruned patches get where `last` is None: 'nearest', the features of the nearest
        patch that still has a token (by distance on the grid, ties to the lower index); or 'zero'.
      last: [B, P, C], features for pruned patches, see `last_features`.
      grid: rows and columns of patches; None: a square.
    """
    token_of_patch = tokens.token_of_patch
    if last is None and fill == "nearest":
        has_token = token_of_patch >= 0
        grid = grid or (math.isqrt(token_of_patch.shape[1]),) * 2
        distance = jnp.where(has_token[:, None, :], jnp.asarray(_squared_distances(*grid)), np.inf)
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


def values_of_patches(tokens: TokenSet, values: jax.Array) -> jax.Array:
    """Returns for every original patch the value of the token that contains it, [B, P]; 0 for pruned patches.

    Args:
      tokens: the tokens.
      values: [B, N], one per token.
    """
    token_of_patch = tokens.token_of_patch
    chosen = jnp.take_along_axis(values, jnp.maximum(token_of_patch, 0), axis=1)
    return jnp.where(token_of_patch >= 0, chosen, 0)


class CellSplit(NamedTuple):
    """Cells of 2 x 2 patches, of which those with the highest scores are split into patches.

    Tokens come in this order: the four patches of the cell with the highest score, row by row, those of the next cell and
    so on; then one token for every other cell, in falling order of the scores.

    Attributes:
      rank: int32 [B, cells], rank of each cell by falling score; ties go to the lower index.
      num_split: number of cells that are split.

    Reference: informative region identification, CF-ViT, arXiv 2203.03821.
    """

    rank: jax.Array
    num_split: int

    @classmethod
    def by_score(cls, scores: jax.Array, num_split: int) -> CellSplit:
        """Splits the cells with the highest scores.

        Args:
          scores: float32 [B, cells].
          num_split: number of cells that are split.
        """
        return cls(descending_rank(scores), num_split)

    def choose(self, patches: jax.Array, cells: jax.Array) -> jax.Array:
        """Arranges values of patches and of cells as those of tokens, [B, tokens, C].

        Args:
          patches: [B or 1, P, C], in the order of the grid.
          cells: [B or 1, cells, C], in the order of the grid.
        """
        order = jnp.argsort(self.rank, axis=1)
        split, whole = order[:, : self.num_split], order[:, self.num_split :]
        fine = jnp.take_along_axis(_patches_of_cells(patches), split[:, :, None, None], axis=1)
        coarse = jnp.take_along_axis(cells, whole[:, :, None], axis=1)
        return jnp.concatenate([fine.reshape(order.shape[0], -1, patches.shape[-1]), coarse], axis=1)

    def arrange(self, grid: jax.Array, num_prefix_tokens: int) -> jax.Array:
        """Arranges values of prefix tokens and patches as those of tokens; a whole cell gets the mean of its patches.

        Args:
          grid: [B or 1, num_prefix_tokens + P, C].
          num_prefix_tokens: number of tokens that are no patches, which come first.

        Returns:
          [B, num_prefix_tokens + tokens, C].
        """
        prefix, patches = grid[:, :num_prefix_tokens], grid[:, num_prefix_tokens:]
        others = self.choose(patches, _patches_of_cells(patches).mean(axis=2))
        return jnp.concatenate(
            [jnp.broadcast_to(prefix, (others.shape[0], *prefix.shape[1:])), others], axis=1
        )

    def token_of_patch(self, num_prefix_tokens: int) -> jax.Array:
        """Returns the index of the token that contains each patch, int32 [B, P]; see `TokenSet`.

        Args:
          num_prefix_tokens: number of tokens that are no patches, which come first.
        """
        rank = self.rank[:, :, None]
        is_split = rank < self.num_split
        token = (
            jnp.where(is_split, 4 * rank + jnp.arange(4, dtype=jnp.int32), 3 * self.num_split + rank)
            + num_prefix_tokens
        )
        side = round(self.rank.shape[1] ** 0.5)
        token = token.reshape(-1, side, side, 2, 2).transpose(0, 1, 3, 2, 4)
        return token.reshape(-1, 4 * side * side).astype(jnp.int32)


def _patches_of_cells(grid: jax.Array) -> jax.Array:
    """Values of patches [B, P, C] by cells: [B, cells, 4, C]."""
    batch, count, channels = grid.shape
    side = round(count**0.5) // 2
    cells = grid.reshape(batch, side, 2, side, 2, channels).transpose(0, 1, 3, 2, 4, 5)
    return cells.reshape(batch, side * side, 4, channels)


@functools.lru_cache(maxsize=None)
def _squared_distances(rows: int, columns: int) -> np.ndarray:
    """float32 [P, P], squared distances on a grid."""
    position = np.stack(np.divmod(np.arange(rows * columns), columns), axis=1).astype(np.float32)
    return ((position[:, None] - position[None]) ** 2).sum(axis=2)
