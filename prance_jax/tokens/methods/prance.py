"""The token optimization of PRANCE: prune, merge, and prune then merge (arXiv 2407.05010, section 3.2)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from prance_jax.core.sizes import Size, array_size, size_value
from prance_jax.tokens.counts import column
from prance_jax.tokens.method import Amount
from prance_jax.tokens.similarity import cosine_similarity
from prance_jax.tokens.token_set import AttentionSignals, TokenSet, compose_index, prefix, sort_by_importance


def prune(tokens: TokenSet, signals: AttentionSignals, num_keep: Size) -> TokenSet:
    """Keeps the first `left` tokens by importance; CLS counts and always ranks first.

    left: an int (tokens are removed) or int32 [B] (tokens are masked), at most the tokens that there are.
    """
    ordered, rank = sort_by_importance(tokens, signals.cls_attention, num_keep)
    if not isinstance(num_keep, int):
        ordered = ordered._replace(valid=prefix(rank.shape[1], num_keep))
    return ordered._replace(
        token_of_patch=compose_index(tokens.token_of_patch, jnp.where(rank < column(num_keep), rank, -1))
    )


def merge(
    tokens: TokenSet,
    signals: AttentionSignals,
    num_keep: Size,
    weighted: bool = False,
    similar_sizes: bool = False,
) -> TokenSet:
    """Merges every token that is not among the `left` most important ones into its most similar one there.

    Similarity is the cosine of the features; CLS is no destination unless it is the only one. A destination becomes the
    plain mean of itself and what it received (`weighted`: the mean by size, which is not the paper's); sizes add up
    (`similar_sizes`: what is received counts as far as it is similar, as in DiffRate).

    left: an int (tokens are removed) or int32 [B] (tokens are masked), at most the tokens that there are.
    """
    kept = num_keep
    slots = tokens.features.shape[1]
    tokens = tokens._replace(size=tokens.sizes)
    ordered, rank = sort_by_importance(tokens, signals.cls_attention, slots)
    compact = isinstance(kept, int)
    if compact and kept == slots:
        return ordered._replace(token_of_patch=compose_index(tokens.token_of_patch, rank))
    # Compact: destinations and sources are two slices. Masked: sources are the whole array, destinations that or its
    # leading slots up to a bound, told apart by masks.
    first_source, ends = kept if compact else 0, array_size(kept, slots)
    kept_here = size_value(kept)
    destinations, sources = ordered.features[:, :ends], ordered.features[:, first_source:]
    new_index = jnp.arange(ends)
    if compact:
        open_to = (new_index >= min(1, kept - 1))[None]
        is_source = jnp.ones((1, slots - kept), bool)
    else:
        open_to = (new_index < kept_here[:, None]) & (new_index >= jnp.minimum(1, kept_here - 1)[:, None])
        is_source = (jnp.arange(slots) >= kept_here[:, None]) & (
            True if ordered.valid is None else ordered.valid
        )
    similarity = jnp.where(open_to[:, None], cosine_similarity(sources, destinations), -jnp.inf)
    target = jnp.argmax(similarity, axis=2)

    received = (jax.nn.one_hot(target, ends, dtype=jnp.float32) * is_source[:, :, None]).swapaxes(1, 2)
    weights = ordered.size if weighted else jnp.ones_like(ordered.size)
    source_weights = jnp.where(is_source, weights[:, first_source:], 0.0)
    own = weights[:, :ends]
    # Features of invalid tokens are arbitrary, so they are silenced before the product, not by it.
    silent = jnp.where(is_source[:, :, None], sources.astype(jnp.float32), 0.0) * source_weights[:, :, None]
    total = own + jnp.einsum("bds,bs->bd", received, source_weights)
    # A slot emptied earlier weighs nothing by size; 0 / 0 there would reach every token through the attention.
    total = jnp.where(total > 0, total, 1.0)
    features = (own[:, :, None] * destinations + jnp.einsum("bds,bsc->bdc", received, silent)) / total[
        :, :, None
    ]
    grown = ordered.size[:, first_source:]
    if similar_sizes:
        grown = grown * jnp.maximum(similarity.max(axis=2), 0.0)
    size = ordered.size[:, :ends] + jnp.einsum("bds,bs->bd", received, grown)

    slot_of = jnp.broadcast_to(jnp.arange(slots, dtype=jnp.int32), rank.shape)
    if compact:
        slot_of = slot_of.at[:, kept:].set(target.astype(jnp.int32))
    else:
        slot_of = jnp.where(is_source, target.astype(jnp.int32), slot_of)
    mapping = jnp.take_along_axis(slot_of, rank, axis=1)
    valid = None if compact else prefix(slots, kept)
    return TokenSet(
        features.astype(ordered.features.dtype), size, valid, compose_index(tokens.token_of_patch, mapping)
    )


def prune_merge(
    tokens: TokenSet,
    signals: AttentionSignals,
    pruned: Size,
    num_keep: Size,
    weighted: bool = False,
    similar_sizes: bool = False,
) -> TokenSet:
    """Prunes to `pruned` tokens, merges those to `left`; ints or int32 [B]. The options are those of `merge`."""
    return merge(prune(tokens, signals, pruned), _ranked(tokens, pruned), num_keep, weighted, similar_sizes)


def _ranked(tokens: TokenSet, pruned: Size) -> AttentionSignals:
    """Pruning has sorted the tokens already; a falling importance keeps that order."""
    batch, slots, _ = tokens.features.shape
    falling = jnp.broadcast_to(-jnp.arange(slots, dtype=jnp.float32), (batch, slots))
    falling = falling[:, : array_size(pruned, slots)]
    return AttentionSignals(falling, falling, falling)


def no_macs(count: Amount, num_keep: tuple[Amount, ...], width: Amount, keys: int) -> Amount:
    return 0


def merge_macs(count: Amount, num_keep: tuple[Amount, ...], width: Amount, keys: int) -> Amount:
    """Similarities, the gathering product, and the two small ones that add up weights and sizes."""
    return (count - num_keep[-1]) * num_keep[-1] * (2 * width + 2)


def prune_merge_macs(count: Amount, num_keep: tuple[Amount, ...], width: Amount, keys: int) -> Amount:
    return merge_macs(num_keep[0], num_keep[1:], width, keys)
