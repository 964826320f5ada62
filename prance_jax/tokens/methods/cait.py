"""Asymmetric token merging of neighbours (CAIT, Wang et al. 2023, arXiv 2309.15755).

The tokens always form a rectangle of rows and columns, so a dense head can read them as a grid.
Neighbours in a row merge until the number of columns has halved, then neighbours in a column until
the number of rows has halved, then columns again, and so on. One reduction halves one side at most.
The paper has no public code: the pairs, their order and the weights are a reconstruction.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from prance_jax.core.sizes import BoundedSize, Size, size_value
from prance_jax.tokens.counts import column, if_reduced, removes_nothing
from prance_jax.tokens.method import Amount, TokenMethod
from prance_jax.tokens.regroup import regroup, regroup_macs
from prance_jax.tokens.schedules import keep_rate_schedules
from prance_jax.tokens.token_set import AttentionSignals, TokenSet


def cait(tokens: TokenSet, signals: AttentionSignals, num_keep: Size) -> TokenSet:
    """Merges the most similar neighbours of every row or column, down to a smaller rectangle.

    Patches stay in the order of their rows. Pairs are fixed: entries 0 and 1 of a line, 2 and 3,
    and so on; the last entry of an odd line has no partner. A pair becomes its mean weighted by sizes.
    CLS never merges.

    Args:
      tokens: tokens before the reduction.
      signals: not used; the features themselves are compared.
      num_keep: tokens requested, int or int32 [B]; rounded up to a rectangle by `rectangle_count`.

    Reference: CAIT, arXiv 2309.15755.
    """
    original_patches = tokens.token_of_patch.shape[1]
    side = _side(original_patches)
    num_keep = rectangle_count(tokens.count, num_keep, original_patches)
    if removes_nothing(tokens, num_keep):
        return tokens
    patches, table = tokens.features.shape[1] - 1, grids(side)
    start = _grid_index(side, tokens.count - 1)
    end = _grid_index(side, size_value(num_keep) - 1)
    width, new_width = _look_up(table.columns, start), _look_up(table.columns, end)
    by_columns = _look_up(table.by_columns, start)
    merges_per_line = width - new_width + _look_up(table.rows, start) - _look_up(table.rows, end)

    index = jnp.arange(patches, dtype=jnp.int32)[None]
    row, col = index // width, index % width
    line, along = jnp.where(by_columns, row, col), jnp.where(by_columns, col, row)
    partner = jnp.maximum(index - jnp.where(by_columns, 1, width), 0)
    features = tokens.features[:, 1:].astype(jnp.float32)
    features = features * jax.lax.rsqrt(jnp.maximum(jnp.sum(features**2, -1, keepdims=True), 1e-12))
    partner = jnp.broadcast_to(partner, features.shape[:2])
    similarity = jnp.sum(features * jnp.take_along_axis(features, partner[:, :, None], axis=1), axis=2)
    is_second = (along % 2 == 1) & (index < column(tokens.count) - 1)
    similarity = jnp.where(is_second, jax.lax.stop_gradient(similarity), -jnp.inf)

    same_line = line[:, :, None] == line[:, None, :]
    ranks_higher = (similarity[:, None, :] > similarity[:, :, None]) | (
        (similarity[:, None, :] == similarity[:, :, None]) & (index[:, None, :] < index[:, :, None])
    )
    is_merged = is_second & (jnp.sum(same_line & ranks_higher, axis=2) < merges_per_line)
    not_behind = along[:, None, :] <= along[:, :, None]
    along = along - jnp.sum(same_line & not_behind & is_merged[:, None, :], axis=2)
    new_patch_index = jnp.where(by_columns, line * new_width + along, along * width + line)
    new_index = jnp.concatenate([jnp.zeros_like(new_patch_index[:, :1]), 1 + new_patch_index], axis=1)
    return regroup(tokens, new_index, num_keep)


def cait_macs(count: Amount, num_keep: tuple[Amount, ...], width: Amount, key_dim: int) -> Amount:
    """Counts the MACs of `cait`: those of `regroup`.

    Args:
      count: tokens before.
      num_keep: (tokens after,).
      width: channels.
      key_dim: not used.
    """
    return if_reduced(count, num_keep[0], regroup_macs(count, num_keep[0], width))


def rectangle_count(count: Size, num_keep: Size, patches: int) -> Size:
    """Returns the tokens of the smallest rectangle that can be reached and has enough tokens.

    Args:
      count: tokens that arrive, CLS included.
      num_keep: tokens requested, CLS included.
      patches: original patches of the image, which form a square.
    """
    if isinstance(num_keep, BoundedSize):
        return BoundedSize(rectangle_count(count, num_keep.value, patches), num_keep.bound)
    side = _side(patches)
    table = grids(side)
    if isinstance(count, int) and isinstance(num_keep, int):
        start = _grid_index(side, count - 1)
        end = min(_grid_index(side, num_keep - 1), int(table.furthest[start]))
        return 1 + int(table.patches[max(start, end)])
    count = jnp.asarray(count, jnp.int32)
    start, end = _grid_index(side, count - 1), _grid_index(side, jnp.asarray(num_keep, jnp.int32) - 1)
    end = jnp.maximum(start, jnp.minimum(end, jnp.asarray(table.furthest, jnp.int32)[start]))
    return 1 + jnp.asarray(table.patches, jnp.int32)[end]


class Grids(NamedTuple):
    """All rectangles, from the whole grid down; each has a column or row less than the one before.

    Attributes:
      patches: int [R], patches of each rectangle.
      rows: int [R], its rows.
      columns: int [R], its columns.
      by_columns: bool [R], whether the next step removes a column.
      furthest: int [R], index of the smallest rectangle that one reduction reaches.
    """

    patches: np.ndarray
    rows: np.ndarray
    columns: np.ndarray
    by_columns: np.ndarray
    furthest: np.ndarray


@functools.lru_cache(maxsize=None)
def grids(side: int) -> Grids:
    """Returns all rectangles of a square grid with `side` rows and columns, down to one patch."""
    sides, rectangles, phases = [side, side], [], []
    axis = 1
    while max(sides) > 1:
        start, goal = len(rectangles), -(-sides[axis] // 2)
        while sides[axis] > goal:
            rectangles.append((*sides, axis))
            sides[axis] -= 1
        phases.append((start, len(rectangles)))
        axis = 1 - axis
    rectangles.append((*sides, axis))
    furthest = np.zeros(len(rectangles), int)
    for start, end in phases:
        for index in range(start, end):
            # Pairs halve the current side, which may be shorter than at the start of its phase.
            furthest[index] = min(end, index + rectangles[index][rectangles[index][2]] // 2)
    furthest[-1] = len(rectangles) - 1
    rows, columns, axes = (np.array(part) for part in zip(*rectangles))
    return Grids(rows * columns, rows, columns, axes == 1, furthest)


def _side(patches: int) -> int:
    return round(patches**0.5)


def _grid_index(side: int, patches: Size):
    """Index in `grids` of the smallest rectangle with at least so many patches."""
    table = grids(side).patches
    if isinstance(patches, int):
        return int(np.flatnonzero(table >= patches)[-1]) if patches <= table[0] else 0
    return jnp.maximum(
        jnp.sum(jnp.asarray(table, jnp.int32) >= patches[..., None], axis=-1, dtype=jnp.int32) - 1, 0
    )


def _look_up(values: np.ndarray, index: int | jax.Array) -> int | jax.Array:
    """An entry of a table, or a column [B, 1] with one entry per image."""
    return column(int(values[index]) if isinstance(index, int) else jnp.asarray(values)[index])


CAIT = TokenMethod(
    "cait",
    cait,
    rectangle_count,
    cait_macs,
    needs_importance=False,
    needs_grid=True,
    schedules=keep_rate_schedules,
)
