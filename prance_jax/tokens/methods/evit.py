"""Token reorganisation by CLS attention (EViT, Liang et al. 2022, arXiv 2202.07800, section 3)."""

from __future__ import annotations

import jax.numpy as jnp

from prance_jax.core.sizes import Size, size_value
from prance_jax.tokens.counts import column, if_reduced, removes_nothing
from prance_jax.tokens.feasible_counts import two_or_more
from prance_jax.tokens.method import Amount, TokenMethod
from prance_jax.tokens.regroup import regroup, regroup_macs
from prance_jax.tokens.schedules import fused_keep_rate_schedules
from prance_jax.tokens.token_set import AttentionSignals, TokenSet, ranks


def evit(tokens: TokenSet, signals: AttentionSignals, num_keep: Size) -> TokenSet:
    """Keeps the tokens with the highest CLS attention and fuses the others into one more token.

    Kept tokens are sorted by falling attention. The fused token is the sum of the others, weighted
    by their attention (not normalised). It is the last token, and an ordinary one from then on.
    Sizes are not updated, since EViT's attention is not proportional to them. EViT without the
    fused token is `prance_jax.tokens.methods.prance.prune`.

    Args:
      tokens: tokens before the reduction.
      signals: signals of the attention; `cls_attention` is read.
      num_keep: tokens afterwards, the fused one included: int or int32 [B], 2 at least.

    Reference: EViT, arXiv 2202.07800, section 3.
    """
    num_keep = two_or_more(tokens.count, num_keep)
    if removes_nothing(tokens, num_keep):
        return tokens
    rank, num_sorted = ranks(tokens, signals.cls_attention), column(num_keep) - 1
    is_reduced = column(tokens.count - size_value(num_keep)) > 0
    new_index = jnp.where(
        is_reduced, jnp.minimum(rank, num_sorted), jnp.arange(rank.shape[1], dtype=jnp.int32)
    )
    weights = jnp.where(is_reduced & (rank >= num_sorted), signals.cls_attention, 1.0)
    return regroup(tokens, new_index, num_keep, weights, mean=False, sized=False)


def evit_macs(count: Amount, num_keep: tuple[Amount, ...], width: Amount, key_dim: int) -> Amount:
    """Counts the MACs of `evit`: `regroup` without the total of weights and without sizes.

    Args:
      count: tokens before.
      num_keep: (tokens after,).
      width: channels.
      key_dim: not used.
    """
    return if_reduced(count, num_keep[0], regroup_macs(count, num_keep[0], width) - 2 * count * num_keep[0])


EVIT = TokenMethod(
    "evit", evit, two_or_more, evit_macs, tracks_sizes=False, schedules=fused_keep_rate_schedules
)
