"""The one operation that every token method comes down to: old tokens go to new places, and share them."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from prance_jax.core.sizes import Size, extent
from prance_jax.tokens.token_set import TokenSet, prefix, renumber


class Grouping(NamedTuple):
    """Where every token goes: the arguments of `regroup`, of methods that say it before anything moves."""

    place: jax.Array
    left: Size
    weights: jax.Array


def regroup(
    tokens: TokenSet,
    place: jax.Array,
    left: Size,
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
    place = place if tokens.valid is None else jnp.where(tokens.valid, place, -1)
    features = pooled(tokens.features, place, left, sizes if weights is None else weights, mean=mean)
    size = None
    if sized or tokens.size is not None:
        own = jnp.where(place >= 0, sizes, 0.0)
        size = jnp.einsum("bmn,bn->bm", _moves(place, left), own, precision=jax.lax.Precision.HIGHEST)
    valid = None if isinstance(left, int) else prefix(slots, left)
    return TokenSet(features, size, valid, renumber(tokens.owner, place))


def pooled(
    values: jax.Array, place: jax.Array, left: Size, weights: jax.Array, *, mean: bool = True
) -> jax.Array:
    """What shares a place, as its weighted mean (or sum) there: values [B, N, C] -> [B, left, C], in their type.

    place, left, weights: as for `regroup`; what goes nowhere (-1) may hold anything.
    """
    exact = jax.lax.Precision.HIGHEST
    weights, moves = jnp.where(place >= 0, weights, 0.0), _moves(place, left)
    # Features of invalid tokens are arbitrary, so they are silenced before the product, not by it.
    silent = jnp.where((place >= 0)[:, :, None], values.astype(jnp.float32), 0.0)
    found = jnp.einsum("bmn,bnc->bmc", moves * weights[:, None], silent, precision=exact)
    if mean:
        total = jnp.einsum("bmn,bn->bm", moves, weights, precision=exact)
        found = found / jnp.where(total > 0, total, 1.0)[:, :, None]
    return found.astype(values.dtype)


def _moves(place: jax.Array, left: Size) -> jax.Array:
    """float32 [B, left, N]: 1 where a token goes."""
    return jax.nn.one_hot(place, extent(left, place.shape[1]), dtype=jnp.float32, axis=1)


def pooled_macs(count, left, width):
    """Multiply-accumulates of `pooled`, a mean."""
    return count * left * (width + 1)


def regroup_macs(count, left, width):
    """Multiply-accumulates of `regroup`: the features, the weights and the sizes."""
    return count * left * (width + 2)
