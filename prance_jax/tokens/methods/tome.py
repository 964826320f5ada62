"""Token merging by bipartite soft matching (ToMe, Bolya et al. 2023, arXiv 2210.09461, section 3)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from prance_jax.core.sizes import Size, size_value
from prance_jax.tokens import counts
from prance_jax.tokens.counts import column, halving, removes_nothing
from prance_jax.tokens.method import Amount
from prance_jax.tokens.regroup import regroup, regroup_macs
from prance_jax.tokens.token_set import AttentionSignals, TokenSet, descending


def tome_macs(count: Amount, num_keep: tuple[Amount, ...], width: Amount, keys: int) -> Amount:
    return counts.if_reduced(
        count, num_keep[0], matching_macs(count, keys) + regroup_macs(count, num_keep[0], width)
    )


def tome(tokens: TokenSet, signals: AttentionSignals, num_keep: Size) -> TokenSet:
    """Merges the most similar pairs until `left` tokens remain; at most half of the tokens go, CLS never.

    Tokens at even places (CLS is the first) each look for the most similar one at an odd place, by the cosine of their
    keys; those with the best match are merged into it, by the mean weighted by sizes. Order: what is left of the even
    ones, then the odd ones, so that the next matching meets other pairs. left: int or int32 [B]. No gradient flows through
    the matching.
    """
    num_keep = halving(tokens.count, num_keep)
    if removes_nothing(tokens, num_keep):
        return tokens
    return regroup(tokens, matching(tokens, signals, num_keep), num_keep)


def matching(tokens: TokenSet, signals: AttentionSignals, num_keep: Size) -> jax.Array:
    """New places, int32 [B, N], of a matching that leaves `left` tokens (at least half of them)."""
    batch, slots, _ = tokens.features.shape
    count = tokens.count
    keys = jax.lax.stop_gradient(signals.keys.astype(jnp.float32))
    keys = keys * jax.lax.rsqrt(jnp.maximum(jnp.sum(keys * keys, -1, keepdims=True), 1e-12))
    similarity = jnp.einsum("bsd,btd->bst", keys[:, ::2], keys[:, 1::2]).at[:, 0].set(-jnp.inf)
    if tokens.valid is not None:
        both = tokens.valid[:, ::2, None] & tokens.valid[:, None, 1::2]
        similarity = jnp.where(both, similarity, -jnp.inf)
    best, partner = similarity.max(axis=2), similarity.argmax(axis=2)

    removed = column(count - size_value(num_keep))
    gone = descending(best) < removed
    kept = column((count + 1) // 2) - removed
    evens = jnp.where(gone, kept + partner, jnp.cumsum(~gone, axis=1) - 1)
    odds = jnp.broadcast_to(kept + jnp.arange(similarity.shape[2]), (batch, similarity.shape[2]))
    odds = jnp.pad(odds, ((0, 0), (0, evens.shape[1] - odds.shape[1])))
    new_index = jnp.stack([evens, odds], axis=2).reshape(batch, -1)[:, :slots]
    return jnp.where(removed > 0, new_index, jnp.arange(slots)).astype(jnp.int32)


def matching_macs(count, keys):
    """Multiply-accumulates of the similarities; keys: their width."""
    return ((count + 1) // 2) * (count // 2) * keys
