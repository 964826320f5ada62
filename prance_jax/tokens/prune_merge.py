"""Pruning, then merging of what is left (PRANCE, section 3.2)."""

from __future__ import annotations

import jax.numpy as jnp

from prance_jax.space import Rate
from prance_jax.tokens.merge import merge
from prance_jax.tokens.prune import prune
from prance_jax.tokens.tokenset import AttentionSignals, TokenSet


def prune_merge(
    tokens: TokenSet,
    signals: AttentionSignals,
    rates: tuple[Rate, ...],
    floor: int,
    weighted: bool = False,
    class_tokens: int = 1,
) -> TokenSet:
    """Prunes with the first rate, merges with the second. rates: (prune keep, merge keep), floats or float32 [B]."""
    prune_keep, merge_keep = rates
    left = prune(tokens, signals, (prune_keep,), floor, class_tokens)
    return merge(left, _ranked(left), (merge_keep,), floor, weighted, class_tokens)


def _ranked(tokens: TokenSet) -> AttentionSignals:
    """Pruning has sorted the tokens already; a falling importance keeps that order."""

    batch, slots, _ = tokens.features.shape
    falling = jnp.broadcast_to(-jnp.arange(slots, dtype=jnp.float32), (batch, slots))
    return AttentionSignals(falling, falling, falling)
