"""Class tokens beside CLS step aside while a method runs: none of them has to know."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from prance_jax.tokens.counts import shift_size
from prance_jax.tokens.regroup import Grouping
from prance_jax.tokens.token_set import AttentionSignals, TokenSet


def split_prefix(
    tokens: TokenSet, signals: AttentionSignals, extra_prefix_tokens: int
) -> tuple[TokenSet, AttentionSignals]:
    """Takes out the `aside` tokens behind CLS."""

    def cut(x: jax.Array | None) -> jax.Array | None:
        return None if x is None else jnp.concatenate([x[:, :1], x[:, 1 + extra_prefix_tokens :]], axis=1)

    token_of_patch = jnp.where(tokens.token_of_patch < 0, -1, tokens.token_of_patch - extra_prefix_tokens)
    rest = TokenSet(cut(tokens.features), cut(tokens.size), cut(tokens.valid), token_of_patch, tokens.package)
    return rest, AttentionSignals(*(cut(signal) for signal in signals))


def join_prefix(reduced: TokenSet, tokens: TokenSet, extra_prefix_tokens: int) -> TokenSet:
    """Puts them back behind CLS, as they are in `tokens`, the set before the reduction."""

    def join(new: jax.Array | None, old: jax.Array | None) -> jax.Array | None:
        if new is None:
            return None
        between = (
            jnp.ones_like(new[:, :1].repeat(extra_prefix_tokens, 1))
            if old is None
            else old[:, 1 : 1 + extra_prefix_tokens]
        )
        return jnp.concatenate([new[:, :1], between.astype(new.dtype), new[:, 1:]], axis=1)

    token_of_patch = jnp.where(reduced.token_of_patch < 0, -1, reduced.token_of_patch + extra_prefix_tokens)
    features, size = join(reduced.features, tokens.features), join(reduced.size, tokens.size)
    return TokenSet(features, size, join(reduced.valid, tokens.valid), token_of_patch, reduced.package)


def prefix_groups(grouping: Grouping, extra_prefix_tokens: int) -> Grouping:
    """Of the tokens without them a grouping; with them, each alone at its place behind CLS."""
    batch = len(grouping.new_index)
    own = jnp.broadcast_to(
        jnp.arange(1, 1 + extra_prefix_tokens, dtype=grouping.new_index.dtype), (batch, extra_prefix_tokens)
    )
    rest = jnp.where(grouping.new_index[:, 1:] < 0, -1, grouping.new_index[:, 1:] + extra_prefix_tokens)
    new_index = jnp.concatenate([grouping.new_index[:, :1], own, rest], axis=1)
    ones = jnp.ones((batch, extra_prefix_tokens), grouping.weights.dtype)
    weights = jnp.concatenate([grouping.weights[:, :1], ones, grouping.weights[:, 1:]], axis=1)
    return Grouping(new_index, shift_size(grouping.num_keep, extra_prefix_tokens), weights)
