"""Class tokens beside CLS step aside while a method runs: none of them has to know."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from prance_jax.tokens.counts import shifted
from prance_jax.tokens.regroup import Grouping
from prance_jax.tokens.token_set import AttentionSignals, TokenSet


def without(tokens: TokenSet, signals: AttentionSignals, aside: int) -> tuple[TokenSet, AttentionSignals]:
    """Takes out the `aside` tokens behind CLS."""

    def cut(x: jax.Array | None) -> jax.Array | None:
        return None if x is None else jnp.concatenate([x[:, :1], x[:, 1 + aside :]], axis=1)

    owner = jnp.where(tokens.owner < 0, -1, tokens.owner - aside)
    rest = TokenSet(cut(tokens.features), cut(tokens.size), cut(tokens.valid), owner, tokens.package)
    return rest, AttentionSignals(*(cut(signal) for signal in signals))


def put_back(reduced: TokenSet, tokens: TokenSet, aside: int) -> TokenSet:
    """Puts them back behind CLS, as they are in `tokens`, the set before the reduction."""

    def join(new: jax.Array | None, old: jax.Array | None) -> jax.Array | None:
        if new is None:
            return None
        between = jnp.ones_like(new[:, :1].repeat(aside, 1)) if old is None else old[:, 1 : 1 + aside]
        return jnp.concatenate([new[:, :1], between.astype(new.dtype), new[:, 1:]], axis=1)

    owner = jnp.where(reduced.owner < 0, -1, reduced.owner + aside)
    features, size = join(reduced.features, tokens.features), join(reduced.size, tokens.size)
    return TokenSet(features, size, join(reduced.valid, tokens.valid), owner, reduced.package)


def alone(grouping: Grouping, aside: int) -> Grouping:
    """Of the tokens without them a grouping; with them, each alone at its place behind CLS."""
    batch = len(grouping.place)
    own = jnp.broadcast_to(jnp.arange(1, 1 + aside, dtype=grouping.place.dtype), (batch, aside))
    rest = jnp.where(grouping.place[:, 1:] < 0, -1, grouping.place[:, 1:] + aside)
    place = jnp.concatenate([grouping.place[:, :1], own, rest], axis=1)
    ones = jnp.ones((batch, aside), grouping.weights.dtype)
    weights = jnp.concatenate([grouping.weights[:, :1], ones, grouping.weights[:, 1:]], axis=1)
    return Grouping(place, shifted(grouping.left, aside), weights)
