"""Token reorganisation by CLS attention (EViT, Liang et al. 2022, arXiv 2202.07800, section 3)."""

from __future__ import annotations

import jax.numpy as jnp

from prance_jax.core.sizes import Size, size_value
from prance_jax.tokens import counts
from prance_jax.tokens.counts import at_least_two, column, removes_nothing
from prance_jax.tokens.method import Amount
from prance_jax.tokens.regroup import regroup, regroup_macs
from prance_jax.tokens.token_set import AttentionSignals, TokenSet, ranks


def evit(tokens: TokenSet, signals: AttentionSignals, num_keep: Size) -> TokenSet:
    """Keeps the tokens that CLS attends to most and adds up the others in one: `left` remain, by falling attention.

    What goes is weighted by its (not normalised) attention; the sum is the last token and an ordinary one from then on.
    Sizes are left alone: EViT's attention is not proportional to them. left: int or int32 [B], 2 at least. Without the
    sum, EViT is `prune`.
    """
    num_keep = at_least_two(tokens.count, num_keep)
    if removes_nothing(tokens, num_keep):
        return tokens
    rank, kept = ranks(tokens, signals.cls_attention), column(num_keep) - 1
    changes = column(tokens.count - size_value(num_keep)) > 0
    new_index = jnp.where(changes, jnp.minimum(rank, kept), jnp.arange(rank.shape[1]))
    weights = jnp.where(changes & (rank >= kept), signals.cls_attention, 1.0)
    return regroup(tokens, new_index, num_keep, weights, mean=False, sized=False)


def evit_macs(count: Amount, num_keep: tuple[Amount, ...], width: Amount, keys: int) -> Amount:
    """A sum needs no total and has no sizes; the package has a total."""
    return counts.if_reduced(
        count, num_keep[0], regroup_macs(count, num_keep[0], width) - 2 * count * num_keep[0]
    )
