"""Asymmetric token merging (CAIT, Wang et al. 2023, arXiv 2309.15755, section 3.2).

No code is public. What is known of it: neighbouring tokens merge, along one direction at a time, and what remains is a
rectangular grid. The rest is a reconstruction: pairs along the rows first, along the columns once the grid is half as
wide, weighted by sizes; where less than all pairs are to go, in every line the most similar ones.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from prance_jax.spec.search_space import Size, number
from prance_jax.tokens.counts import column, nothing_goes
from prance_jax.tokens.methods.grid import grids, index_of, rectangles, side_of
from prance_jax.tokens.regroup import regroup
from prance_jax.tokens.token_set import AttentionSignals, TokenSet


def cait(tokens: TokenSet, signals: AttentionSignals, left: Size) -> TokenSet:
    """Merges neighbours until at least `left` tokens remain, as few as make a rectangle; CLS never merges.

    Patches stay in the order of their rows, so a dense head can read the grid as it is (`grid.grids`). One reduction
    at most halves the width or the height; of an odd line the last token has no partner. left: int or int32 [B].
    """
    side = side_of(tokens.owner.shape[1])
    left = rectangles(tokens.count, left, side)
    if nothing_goes(tokens, left):
        return tokens
    patches, table = tokens.features.shape[1] - 1, grids(side)
    here = index_of(side, tokens.count - 1)
    there = index_of(side, number(left) - 1)
    look = lambda values, index: column(
        int(values[index]) if isinstance(index, int) else jnp.asarray(values)[index]
    )
    width, narrow = look(table.columns, here), look(table.columns, there)
    along_rows = look(table.by_columns, here)
    merged = width - narrow + look(table.rows, here) - look(table.rows, there)

    place = jnp.arange(patches)[None]
    row, col = place // width, place % width
    line, along = jnp.where(along_rows, row, col), jnp.where(along_rows, col, row)
    partner = jnp.maximum(place - jnp.where(along_rows, 1, width), 0)
    features = tokens.features[:, 1:].astype(jnp.float32)
    features = features * jax.lax.rsqrt(jnp.maximum(jnp.sum(features**2, -1, keepdims=True), 1e-12))
    partner = jnp.broadcast_to(partner, features.shape[:2])
    similarity = jnp.sum(features * jnp.take_along_axis(features, partner[:, :, None], axis=1), axis=2)
    second = (along % 2 == 1) & (place < column(tokens.count) - 1)
    similarity = jnp.where(second, jax.lax.stop_gradient(similarity), -jnp.inf)

    same_line = line[:, :, None] == line[:, None, :]
    ahead = (similarity[:, None, :] > similarity[:, :, None]) | (
        (similarity[:, None, :] == similarity[:, :, None]) & (place[:, None, :] < place[:, :, None])
    )
    gone = second & (jnp.sum(same_line & ahead, axis=2) < merged)
    before = along[:, None, :] <= along[:, :, None]
    along = along - jnp.sum(same_line & before & gone[:, None, :], axis=2)
    moved = jnp.where(along_rows, line * narrow + along, along * width + line)
    place = jnp.concatenate([jnp.zeros_like(moved[:, :1]), 1 + moved], axis=1)
    return regroup(tokens, place, left)
