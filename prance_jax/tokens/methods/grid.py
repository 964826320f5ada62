"""The rectangles that asymmetric merging passes through: columns halve, then rows, then columns again ..."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from prance_jax.spec.search_space import Size, Within


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


def rectangles(count: Size, left: Size, side: int) -> Size:
    """The tokens (CLS counted) that can be left of `count`: a rectangle, within reach, of `left` tokens at least."""
    if isinstance(left, Within):
        return Within(rectangles(count, left.value, side), left.bound)
    table = grids(side)
    if isinstance(count, int) and isinstance(left, int):
        here = index_of(side, count - 1)
        there = min(index_of(side, left - 1), int(table.furthest[here]))
        return 1 + int(table.patches[max(here, there)])
    count = jnp.asarray(count)
    here, there = index_of(side, count - 1), index_of(side, jnp.asarray(left) - 1)
    there = jnp.maximum(here, jnp.minimum(there, jnp.asarray(table.furthest)[here]))
    return 1 + jnp.asarray(table.patches)[there].astype(jnp.int32)
