"""Pruning, then merging of what is left (PRANCE, section 3.2)."""

from __future__ import annotations

import jax.numpy as jnp

from prance_jax.spec.search_space import Size, extent
from prance_jax.tokens.methods.merge import merge
from prance_jax.tokens.methods.prune import prune
from prance_jax.tokens.token_set import AttentionSignals, TokenSet


def prune_merge(
    tokens: TokenSet,
    signals: AttentionSignals,
    pruned: Size,
    left: Size,
    weighted: bool = False,
    similar_sizes: bool = False,
) -> TokenSet:
    """Prunes to `pruned` tokens, merges those to `left`; ints or int32 [B]. The options are those of `merge`."""
    return merge(prune(tokens, signals, pruned), _ranked(tokens, pruned), left, weighted, similar_sizes)


def _ranked(tokens: TokenSet, pruned: Size) -> AttentionSignals:
    """Pruning has sorted the tokens already; a falling importance keeps that order."""
    batch, slots, _ = tokens.features.shape
    falling = jnp.broadcast_to(-jnp.arange(slots, dtype=jnp.float32), (batch, slots))
    falling = falling[:, : extent(pruned, slots)]
    return AttentionSignals(falling, falling, falling)
