"""Token pruning by CLS attention (PRANCE, section 3.2; the ranking is that of EViT)."""

from __future__ import annotations

import jax.numpy as jnp

from prance_jax.spec.search_space import Size
from prance_jax.tokens.counts import column
from prance_jax.tokens.token_set import AttentionSignals, TokenSet, prefix, renumber, sort_by_importance


def prune(tokens: TokenSet, signals: AttentionSignals, left: Size) -> TokenSet:
    """Keeps the first `left` tokens by importance; CLS counts and always ranks first.

    left: an int (tokens are removed) or int32 [B] (tokens are masked), at most the tokens that there are.
    """
    ordered, rank = sort_by_importance(tokens, signals.cls_attention, left)
    if not isinstance(left, int):
        ordered = ordered._replace(valid=prefix(rank.shape[1], left))
    return ordered._replace(owner=renumber(tokens.owner, jnp.where(rank < column(left), rank, -1)))
