"""The rectangles that asymmetric merging passes through: columns halve, then rows, then columns again ..."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from prance_jax.core.sizes import BoundedSize, Size, size_value
from prance_jax.tokens import counts
from prance_jax.tokens.counts import column, removes_nothing
from prance_jax.tokens.method import Amount
from prance_jax.tokens.regroup import regroup, regroup_macs
from prance_jax.tokens.token_set import AttentionSignals, TokenSet


class Grids(NamedTuple):
    """One entry per rectangle, from the whole grid down, each a column or a row smaller than the one before.

    patches: its patches. rows, columns: its sides. by_columns: whether the next step takes a column away. furthest: index
    of the smallest rectangle that one merging of pairs reaches.
    """

    patches: np.ndarray
    rows: np.ndarray
    columns: np.ndarray
    by_columns: np.ndarray
    furthest: np.ndarray


@functools.lru_cache(maxsize=None)
def grids(side: int) -> Grids:
    """All rectangles of a square grid of patches down to a single one."""
    sides, found, phases = [side, side], [], []
    axis = 1
    while max(sides) > 1:
        start, goal = len(found), -(-sides[axis] // 2)
        while sides[axis] > goal:
            found.append((*sides, axis))
            sides[axis] -= 1
        phases.append((start, len(found)))
        axis = 1 - axis
    found.append((*sides, axis))
    ends = np.zeros(len(found), int)
    for start, end in phases:
        for index in range(start, end):
            # Pairs halve the side as it is now, which may be shorter than at the beginning of its phase.
            ends[index] = min(end, index + found[index][found[index][2]] // 2)
    ends[-1] = len(found) - 1
    rows, columns, axes = (np.array(part) for part in zip(*found))
    return Grids(rows * columns, rows, columns, axes == 1, ends)


def side_of(patches: int) -> int:
    return round(patches**0.5)


def index_of(side: int, patches: Size):
    """Index of the smallest rectangle that holds so many patches."""
    table = grids(side).patches
    if isinstance(patches, int):
        return int(np.flatnonzero(table >= patches)[-1]) if patches <= table[0] else 0
    return jnp.maximum(jnp.sum(jnp.asarray(table) >= patches[..., None], axis=-1) - 1, 0)


def rectangles(count: Size, num_keep: Size, side: int) -> Size:
    """The tokens (CLS counted) that can be left of `count`: a rectangle, within reach, of `left` tokens at least."""
    if isinstance(num_keep, BoundedSize):
        return BoundedSize(rectangles(count, num_keep.value, side), num_keep.bound)
    table = grids(side)
    if isinstance(count, int) and isinstance(num_keep, int):
        here = index_of(side, count - 1)
        there = min(index_of(side, num_keep - 1), int(table.furthest[here]))
        return 1 + int(table.patches[max(here, there)])
    count = jnp.asarray(count)
    here, there = index_of(side, count - 1), index_of(side, jnp.asarray(num_keep) - 1)
    there = jnp.maximum(here, jnp.minimum(there, jnp.asarray(table.furthest)[here]))
    return 1 + jnp.asarray(table.patches)[there].astype(jnp.int32)


def cait(tokens: TokenSet, signals: AttentionSignals, num_keep: Size) -> TokenSet:
    """Merges neighbours until at least `left` tokens remain, as few as make a rectangle; CLS never merges.

    Patches stay in the order of their rows, so a dense head can read the grid as it is (`grid.grids`). One reduction
    at most halves the width or the height; of an odd line the last token has no partner. left: int or int32 [B].
    """
    side = side_of(tokens.token_of_patch.shape[1])
    num_keep = rectangles(tokens.count, num_keep, side)
    if removes_nothing(tokens, num_keep):
        return tokens
    patches, table = tokens.features.shape[1] - 1, grids(side)
    here = index_of(side, tokens.count - 1)
    there = index_of(side, size_value(num_keep) - 1)
    look = lambda values, index: column(
        int(values[index]) if isinstance(index, int) else jnp.asarray(values)[index]
    )
    width, narrow = look(table.columns, here), look(table.columns, there)
    along_rows = look(table.by_columns, here)
    merged = width - narrow + look(table.rows, here) - look(table.rows, there)

    new_index = jnp.arange(patches)[None]
    row, col = new_index // width, new_index % width
    line, along = jnp.where(along_rows, row, col), jnp.where(along_rows, col, row)
    partner = jnp.maximum(new_index - jnp.where(along_rows, 1, width), 0)
    features = tokens.features[:, 1:].astype(jnp.float32)
    features = features * jax.lax.rsqrt(jnp.maximum(jnp.sum(features**2, -1, keepdims=True), 1e-12))
    partner = jnp.broadcast_to(partner, features.shape[:2])
    similarity = jnp.sum(features * jnp.take_along_axis(features, partner[:, :, None], axis=1), axis=2)
    second = (along % 2 == 1) & (new_index < column(tokens.count) - 1)
    similarity = jnp.where(second, jax.lax.stop_gradient(similarity), -jnp.inf)

    same_line = line[:, :, None] == line[:, None, :]
    ahead = (similarity[:, None, :] > similarity[:, :, None]) | (
        (similarity[:, None, :] == similarity[:, :, None]) & (new_index[:, None, :] < new_index[:, :, None])
    )
    gone = second & (jnp.sum(same_line & ahead, axis=2) < merged)
    before = along[:, None, :] <= along[:, :, None]
    along = along - jnp.sum(same_line & before & gone[:, None, :], axis=2)
    moved = jnp.where(along_rows, line * narrow + along, along * width + line)
    new_index = jnp.concatenate([jnp.zeros_like(moved[:, :1]), 1 + moved], axis=1)
    return regroup(tokens, new_index, num_keep)


def cait_macs(count: Amount, num_keep: tuple[Amount, ...], width: Amount, keys: int) -> Amount:
    return counts.if_reduced(count, num_keep[0], regroup_macs(count, num_keep[0], width))
