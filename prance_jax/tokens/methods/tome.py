"""Merging by bipartite soft matching (ToMe, Bolya et al. 2023, arXiv 2210.09461, section 3)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from prance_jax.core.sizes import Size, size_value
from prance_jax.tokens.counts import column, if_reduced, removes_nothing
from prance_jax.tokens.feasible_counts import half_or_more
from prance_jax.tokens.method import Amount, TokenMethod
from prance_jax.tokens.regroup import regroup, regroup_macs
from prance_jax.tokens.token_set import AttentionSignals, TokenSet, descending_rank


def tome(tokens: TokenSet, signals: AttentionSignals, num_keep: Size) -> TokenSet:
    """Merges the most similar pairs of tokens, each into its mean weighted by sizes.

    The pairs are those of `matching`. CLS is never merged.

    Args:
      tokens: tokens before the reduction.
      signals: signals of the attention; `keys` are read.
      num_keep: tokens afterwards: int or int32 [B], half of the tokens at least.

    Reference: ToMe, arXiv 2210.09461, section 3.
    """
    num_keep = half_or_more(tokens.count, num_keep)
    if removes_nothing(tokens, num_keep):
        return tokens
    return regroup(tokens, matching(tokens, signals, num_keep), num_keep)


def matching(tokens: TokenSet, signals: AttentionSignals, num_keep: Size) -> jax.Array:
    """Matches tokens in pairs and returns their new indices, int32 [B, N].

    Each token at an even index (CLS is index 0) finds the most similar one at an odd index, by the
    cosine of their keys. The pairs of highest similarity merge. New order: remaining even tokens,
    then odd ones, so that the next matching makes other pairs. There is no gradient through the
    matching.

    Args:
      tokens: tokens before the reduction.
      signals: signals of the attention; `keys` are read.
      num_keep: tokens afterwards: int or int32 [B], half of the tokens at least.
    """
    batch, slots, _ = tokens.features.shape
    count = tokens.count
    keys = jax.lax.stop_gradient(signals.keys.astype(jnp.float32))
    keys = keys * jax.lax.rsqrt(jnp.maximum(jnp.sum(keys * keys, -1, keepdims=True), 1e-12))
    similarity = jnp.einsum("bsd,btd->bst", keys[:, ::2], keys[:, 1::2]).at[:, 0].set(-jnp.inf)
    if tokens.valid is not None:
        both_valid = tokens.valid[:, ::2, None] & tokens.valid[:, None, 1::2]
        similarity = jnp.where(both_valid, similarity, -jnp.inf)
    best, partner = similarity.max(axis=2), similarity.argmax(axis=2)

    num_removed = column(count - size_value(num_keep))
    is_merged = descending_rank(best) < num_removed
    num_even = column((count + 1) // 2) - num_removed
    even_index = jnp.where(is_merged, num_even + partner, jnp.cumsum(~is_merged, axis=1) - 1)
    odd_index = jnp.broadcast_to(
        num_even + jnp.arange(similarity.shape[2], dtype=jnp.int32), (batch, similarity.shape[2])
    )
    odd_index = jnp.pad(odd_index, ((0, 0), (0, even_index.shape[1] - odd_index.shape[1])))
    new_index = jnp.stack([even_index, odd_index], axis=2).reshape(batch, -1)[:, :slots]
    return jnp.where(num_removed > 0, new_index, jnp.arange(slots, dtype=jnp.int32)).astype(jnp.int32)


def matching_macs(count, key_dim):
    """Counts the MACs of the similarities in `matching`.

    Args:
      count: tokens before.
      key_dim: channels that are compared.
    """
    return ((count + 1) // 2) * (count // 2) * key_dim


def tome_macs(count: Amount, num_keep: tuple[Amount, ...], width: Amount, key_dim: int) -> Amount:
    """Counts the MACs of `tome`: `matching` and `regroup`.

    Args:
      count: tokens before.
      num_keep: (tokens after,).
      width: channels.
      key_dim: channels of a key.
    """
    return if_reduced(
        count, num_keep[0], matching_macs(count, key_dim) + regroup_macs(count, num_keep[0], width)
    )


TOME = TokenMethod("tome", tome, half_or_more, tome_macs, needs_importance=False)
