"""Token pruning by CLS attention (PRANCE, section 3.2; the ranking is that of EViT)."""

from __future__ import annotations

import jax.numpy as jnp

from prance_jax.space import Rate, number
from prance_jax.tokens.tokenset import (
    AttentionSignals,
    TokenSet,
    kept_count,
    prefix,
    renumber,
    sort_by_importance,
)


def prune(
    tokens: TokenSet, signals: AttentionSignals, rates: tuple[Rate, ...], floor: int, class_tokens: int = 1
) -> TokenSet:
    """Keeps the first floor(keep x tokens) tokens by importance; CLS counts and always ranks first.

    rates: (keep,), a float (tokens are removed) or float32 [B] (tokens are masked). floor: fewest tokens left.
    class_tokens: how many stand in front that always stay.
    """
    (keep,) = rates
    kept = kept_count(tokens.count, keep, floor)
    ordered, rank = sort_by_importance(tokens, signals.cls_attention, kept, class_tokens)
    if isinstance(kept, int):
        left, limit = ordered, kept
    else:
        left, limit = ordered._replace(valid=prefix(rank.shape[1], kept)), number(kept)[:, None]
    return left._replace(owner=renumber(tokens.owner, jnp.where(rank < limit, rank, -1)))
