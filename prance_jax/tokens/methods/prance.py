"""The token methods of PRANCE: prune, merge, and prune then merge (arXiv 2407.05010, section 3.2).

All rank tokens by their attention from CLS. CLS always ranks first.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from prance_jax.core.sizes import Size, array_size, size_value
from prance_jax.tokens.counts import column
from prance_jax.tokens.feasible_counts import any_count
from prance_jax.tokens.method import Amount, TokenMethod
from prance_jax.tokens.schedules import keep_rate_schedules
from prance_jax.tokens.similarity import cosine_similarity
from prance_jax.tokens.token_set import (
    AttentionSignals,
    TokenSet,
    compose_index,
    prefix_mask,
    sort_by_importance,
)


def prune(tokens: TokenSet, signals: AttentionSignals, num_keep: Size) -> TokenSet:
    """Keeps the tokens with the highest CLS attention, sorted, and drops the others.

    Args:
      tokens: tokens before the reduction.
      signals: signals of the attention; `cls_attention` is read.
      num_keep: tokens afterwards, CLS included: an int (compact: the others are removed) or int32
        [B] (masked: the others become invalid), at most the tokens that arrive.
    """
    ordered, rank = sort_by_importance(tokens, signals.cls_attention, num_keep)
    if not isinstance(num_keep, int):
        ordered = ordered._replace(valid=prefix_mask(rank.shape[1], num_keep))
    new_index = jnp.where(rank < column(num_keep), rank, -1)
    return ordered._replace(token_of_patch=compose_index(tokens.token_of_patch, new_index))


def prune_macs(count: Amount, num_keep: tuple[Amount, ...], width: Amount, key_dim: int) -> Amount:
    """Returns 0: `prune` has no products.

    Args:
      count: not used.
      num_keep: not used.
      width: not used.
      key_dim: not used.
    """
    return 0


def merge(
    tokens: TokenSet,
    signals: AttentionSignals,
    num_keep: Size,
    weighted: bool = False,
    similar_sizes: bool = False,
) -> TokenSet:
    """Keeps the tokens with the highest CLS attention and merges each other token into one of them.

    A token merges into the most similar kept token, by the cosine of the features. CLS receives
    tokens only if it is the only one kept. A kept token becomes the plain mean of itself and the
    tokens that it received.

    Args:
      tokens: tokens before the reduction.
      signals: signals of the attention; `cls_attention` is read.
      num_keep: tokens afterwards, as for `prune`.
      weighted: take the mean weighted by sizes, which is not the paper's.
      similar_sizes: multiply received sizes by the similarity, as DiffRate does.
    """
    slots = tokens.features.shape[1]
    tokens = tokens._replace(size=tokens.sizes)
    ordered, rank = sort_by_importance(tokens, signals.cls_attention, slots)
    compact = isinstance(num_keep, int)
    if compact and num_keep == slots:
        return ordered._replace(token_of_patch=compose_index(tokens.token_of_patch, rank))
    # Compact: kept tokens and merged tokens are two slices. Masked: merged tokens are a mask over the
    # whole array, kept tokens a mask over the whole array or its leading slots up to a bound.
    first_source, num_targets = num_keep if compact else 0, array_size(num_keep, slots)
    num_valid = size_value(num_keep)
    targets, sources = ordered.features[:, :num_targets], ordered.features[:, first_source:]
    target_index = jnp.arange(num_targets, dtype=jnp.int32)
    if compact:
        can_receive = (target_index >= min(1, num_keep - 1))[None]
        is_source = jnp.ones((1, slots - num_keep), bool)
    else:
        can_receive = (target_index < num_valid[:, None]) & (
            target_index >= jnp.minimum(1, num_valid - 1)[:, None]
        )
        is_source = (jnp.arange(slots, dtype=jnp.int32) >= num_valid[:, None]) & (
            True if ordered.valid is None else ordered.valid
        )
    similarity = jnp.where(can_receive[:, None], cosine_similarity(sources, targets), -jnp.inf)
    target_of_source = jnp.argmax(similarity, axis=2)

    one_hot = jax.nn.one_hot(target_of_source, num_targets, dtype=jnp.float32)
    received = (one_hot * is_source[:, :, None]).swapaxes(1, 2)
    weights = ordered.size if weighted else jnp.ones_like(ordered.size)
    source_weights = jnp.where(is_source, weights[:, first_source:], 0.0)
    target_weights = weights[:, :num_targets]
    # Features of invalid tokens are arbitrary: they are zeroed before the product, not by its zeros.
    zeroed = jnp.where(is_source[:, :, None], sources.astype(jnp.float32), 0.0) * source_weights[:, :, None]
    total = target_weights + jnp.einsum("bds,bs->bd", received, source_weights)
    # An empty slot has size 0; 0 / 0 would be NaN and reach every token through the attention.
    total = jnp.where(total > 0, total, 1.0)
    features = (target_weights[:, :, None] * targets + jnp.einsum("bds,bsc->bdc", received, zeroed)) / total[
        :, :, None
    ]
    source_size = ordered.size[:, first_source:]
    if similar_sizes:
        source_size = source_size * jnp.maximum(similarity.max(axis=2), 0.0)
    size = ordered.size[:, :num_targets] + jnp.einsum("bds,bs->bd", received, source_size)

    index_of_rank = jnp.broadcast_to(jnp.arange(slots, dtype=jnp.int32), rank.shape)
    if compact:
        index_of_rank = index_of_rank.at[:, num_keep:].set(target_of_source.astype(jnp.int32))
    else:
        index_of_rank = jnp.where(is_source, target_of_source.astype(jnp.int32), index_of_rank)
    new_index = jnp.take_along_axis(index_of_rank, rank, axis=1)
    valid = None if compact else prefix_mask(slots, num_keep)
    token_of_patch = compose_index(tokens.token_of_patch, new_index)
    return TokenSet(features.astype(ordered.features.dtype), size, valid, token_of_patch)


def merge_macs(count: Amount, num_keep: tuple[Amount, ...], width: Amount, key_dim: int) -> Amount:
    """Counts the MACs of `merge`: similarities, sum of features, sums of weights and of sizes.

    Args:
      count: tokens before.
      num_keep: tokens after each step; the last one is read.
      width: channels.
      key_dim: not used.
    """
    return (count - num_keep[-1]) * num_keep[-1] * (2 * width + 2)


def prune_merge(
    tokens: TokenSet,
    signals: AttentionSignals,
    num_after_prune: Size,
    num_keep: Size,
    weighted: bool = False,
    similar_sizes: bool = False,
) -> TokenSet:
    """Prunes tokens, then merges among those that remain.

    Args:
      tokens: tokens before the reduction.
      signals: signals of the attention; `cls_attention` is read.
      num_after_prune: tokens after pruning, as for `prune`.
      num_keep: tokens after merging, as for `merge`.
      weighted: as for `merge`.
      similar_sizes: as for `merge`.
    """
    pruned = prune(tokens, signals, num_after_prune)
    return merge(pruned, _signals_of_sorted(tokens, num_after_prune), num_keep, weighted, similar_sizes)


def _signals_of_sorted(tokens: TokenSet, num_after_prune: Size) -> AttentionSignals:
    """Signals under which tokens that pruning has sorted keep their order: falling numbers."""
    batch, slots, _ = tokens.features.shape
    falling = jnp.broadcast_to(-jnp.arange(slots, dtype=jnp.float32), (batch, slots))
    falling = falling[:, : array_size(num_after_prune, slots)]
    return AttentionSignals(falling, falling, falling)


def prune_merge_macs(count: Amount, num_keep: tuple[Amount, ...], width: Amount, key_dim: int) -> Amount:
    """Counts the MACs of `prune_merge`: those of `merge` on the tokens that pruning keeps.

    Args:
      count: not used.
      num_keep: (tokens after pruning, tokens after merging).
      width: channels.
      key_dim: not used.
    """
    return merge_macs(num_keep[0], num_keep[1:], width, key_dim)


PRUNE = TokenMethod("prune", prune, any_count, prune_macs, tracks_sizes=False, schedules=keep_rate_schedules)
MERGE = TokenMethod("merge", merge, any_count, merge_macs, takes_weighted=True)
PRUNE_MERGE = TokenMethod(
    "prune_merge", prune_merge, any_count, prune_merge_macs, rates=2, takes_weighted=True
)
