"""Soft pruning into one package token (SPViT, Kong et al. 2022, arXiv 2112.13890, section 3.3)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from prance_jax.core.sizes import Size, size_value
from prance_jax.tokens.counts import column, if_reduced, removes_nothing
from prance_jax.tokens.feasible_counts import two_or_more
from prance_jax.tokens.method import Amount, TokenMethod
from prance_jax.tokens.regroup import regroup, regroup_macs
from prance_jax.tokens.schedules import fused_keep_rate_schedules
from prance_jax.tokens.token_set import AttentionSignals, TokenSet, ranks


def package(
    tokens: TokenSet, signals: AttentionSignals, num_keep: Size, drops: jax.Array | None = None
) -> TokenSet:
    """Keeps the tokens with the highest scores and merges the others into the package token.

    The score is the attention from CLS. The package token is the mean of everything merged into it,
    weighted by scores, and it is the last token. It is never dropped. Later reductions add to it,
    whereas the paper appends a new token at every selector.

    Args:
      tokens: tokens before the reduction.
      signals: signals of the attention; `cls_attention` is read.
      num_keep: tokens afterwards, the package included: int or int32 [B], 2 at least.
      drops: bool [B], which images drop something. Needed where `num_keep` does not show it: with a
        single token dropped into a new package, the count stays the same.

    Reference: SPViT, arXiv 2112.13890, section 3.3.
    """
    num_keep = two_or_more(tokens.count, num_keep)
    if removes_nothing(tokens, num_keep):
        return tokens
    scores = signals.cls_attention
    slots = jnp.arange(scores.shape[1], dtype=jnp.int32)
    package_score = jnp.zeros_like(scores[:, 0]) if tokens.package is None else tokens.package
    is_package = (slots == column(tokens.count) - 1) & (package_score > 0)[:, None]
    rank, num_sorted = ranks(tokens, jnp.where(is_package, -jnp.inf, scores)), column(num_keep) - 1
    is_reduced = column(tokens.count - size_value(num_keep)) > 0 if drops is None else drops[:, None]
    is_packed = is_reduced & (rank >= num_sorted)
    if tokens.valid is not None:
        is_packed &= tokens.valid
    new_index = jnp.where(is_reduced, jnp.minimum(rank, num_sorted), slots)
    weights = jnp.where(is_packed, jnp.where(is_package, package_score[:, None], scores), 1.0)
    reduced = regroup(tokens, new_index, num_keep, weights, sized=False)
    packed_score = jnp.sum(jnp.where(is_packed, weights, 0.0), axis=1)
    return reduced._replace(package=jnp.maximum(package_score, packed_score))


def package_macs(count: Amount, num_keep: tuple[Amount, ...], width: Amount, key_dim: int) -> Amount:
    """Counts the MACs of `package`: `regroup` without sizes.

    Args:
      count: tokens before.
      num_keep: (tokens after,).
      width: channels.
      key_dim: not used.
    """
    return if_reduced(count, num_keep[0], regroup_macs(count, num_keep[0], width) - count * num_keep[0])


PACKAGE = TokenMethod(
    "package", package, two_or_more, package_macs, tracks_sizes=False, schedules=fused_keep_rate_schedules
)
