"""The one operation that every token method comes down to: old tokens go to new places, and share them."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from prance_jax.core.sizes import Size, array_size
from prance_jax.tokens.token_set import TokenSet, compose_index, prefix


class Grouping(NamedTuple):
    """Where every token goes: the arguments of `regroup`, of methods that say it before anything moves."""

    new_index: jax.Array
    num_keep: Size
    weights: jax.Array


def regroup(
    tokens: TokenSet,
    new_index: jax.Array,
    num_keep: Size,
    weights: jax.Array | None = None,
    *,
    mean: bool = True,
    sized: bool = True,
) -> TokenSet:
    """Puts every token at its new place; what shares a place becomes its weighted mean there.

    place: int32 [B, N], from 0 to left - 1 without a gap; -1 drops a token. left: tokens afterwards, an int (compact: the
    result has so many) or int32 [B] (masked: the rest is invalid). weights: float32 [B, N], default the sizes. mean: or
    the weighted sum. sized: sizes are added up; or stay None where they were, for methods whose attention ignores them.

    A product with a one-hot matrix, in full precision: it has a gradient, runs on matrix units, keeps a batch where it is
    on several devices, and a token alone at its place goes through it as it is, to rounding.
    """
    slots = tokens.features.shape[1]
    sizes = tokens.sizes
    new_index = new_index if tokens.valid is None else jnp.where(tokens.valid, new_index, -1)
    features = pooled(tokens.features, new_index, num_keep, sizes if weights is None else weights, mean=mean)
    size = None
    if sized or tokens.size is not None:
        own = jnp.where(new_index >= 0, sizes, 0.0)
        size = jnp.einsum("bmn,bn->bm", _moves(new_index, num_keep), own, precision=jax.lax.Precision.HIGHEST)
    valid = None if isinstance(num_keep, int) else prefix(slots, num_keep)
    return TokenSet(features, size, valid, compose_index(tokens.token_of_patch, new_index))


def pooled(
    values: jax.Array, new_index: jax.Array, num_keep: Size, weights: jax.Array, *, mean: bool = True
) -> jax.Array:
    """What shares a place, as its weighted mean (or sum) there: values [B, N, C] -> [B, left, C], in their type.

    place, left, weights: as for `regroup`; what goes nowhere (-1) may hold anything.
    """
    exact = jax.lax.Precision.HIGHEST
    weights, moves = jnp.where(new_index >= 0, weights, 0.0), _moves(new_index, num_keep)
    # Features of invalid tokens are arbitrary, so they are silenced before the product, not by it.
    silent = jnp.where((new_index >= 0)[:, :, None], values.astype(jnp.float32), 0.0)
    found = jnp.einsum("bmn,bnc->bmc", moves * weights[:, None], silent, precision=exact)
    if mean:
        total = jnp.einsum("bmn,bn->bm", moves, weights, precision=exact)
        found = found / jnp.where(total > 0, total, 1.0)[:, :, None]
    return found.astype(values.dtype)


def _moves(new_index: jax.Array, num_keep: Size) -> jax.Array:
    """float32 [B, left, N]: 1 where a token goes."""
    return jax.nn.one_hot(new_index, array_size(num_keep, new_index.shape[1]), dtype=jnp.float32, axis=1)


def pooled_macs(count, num_keep, width):
    """Multiply-accumulates of `pooled`, a mean."""
    return count * num_keep * (width + 1)


def regroup_macs(count, num_keep, width):
    """Multiply-accumulates of `regroup`: the features, the weights and the sizes."""
    return count * num_keep * (width + 2)
