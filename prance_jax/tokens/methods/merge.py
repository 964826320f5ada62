"""Token merging into the important tokens (PRANCE, section 3.2)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from prance_jax.spec.search_space import Size, extent, number
from prance_jax.tokens.token_set import AttentionSignals, TokenSet, prefix, renumber, sort_by_importance


def merge(
    tokens: TokenSet,
    signals: AttentionSignals,
    left: Size,
    weighted: bool = False,
    similar_sizes: bool = False,
) -> TokenSet:
    """Merges every token that is not among the `left` most important ones into its most similar one there.

    Similarity is the cosine of the features; CLS is no destination unless it is the only one. A destination becomes the
    plain mean of itself and what it received (`weighted`: the mean by size, which is not the paper's); sizes add up
    (`similar_sizes`: what is received counts as far as it is similar, as in DiffRate).

    left: an int (tokens are removed) or int32 [B] (tokens are masked), at most the tokens that there are.
    """
    kept = left
    slots = tokens.features.shape[1]
    tokens = tokens._replace(size=tokens.sizes)
    ordered, rank = sort_by_importance(tokens, signals.cls_attention, slots)
    compact = isinstance(kept, int)
    if compact and kept == slots:
        return ordered._replace(owner=renumber(tokens.owner, rank))
    # Compact: destinations and sources are two slices. Masked: sources are the whole array, destinations that or its
    # leading slots up to a bound, told apart by masks.
    first_source, ends = kept if compact else 0, extent(kept, slots)
    kept_here = number(kept)
    destinations, sources = ordered.features[:, :ends], ordered.features[:, first_source:]
    place = jnp.arange(ends)
    if compact:
        open_to = (place >= min(1, kept - 1))[None]
        is_source = jnp.ones((1, slots - kept), bool)
    else:
        open_to = (place < kept_here[:, None]) & (place >= jnp.minimum(1, kept_here - 1)[:, None])
        is_source = (jnp.arange(slots) >= kept_here[:, None]) & (
            True if ordered.valid is None else ordered.valid
        )
    similarity = jnp.where(open_to[:, None], cosine(sources, destinations), -jnp.inf)
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
    return TokenSet(features.astype(ordered.features.dtype), size, valid, renumber(tokens.owner, mapping))


def cosine(a: jax.Array, b: jax.Array) -> jax.Array:
    """Cosine similarity in float32: [B, S, C], [B, D, C] -> [B, S, D]."""
    a, b = (x.astype(jnp.float32) for x in (a, b))
    a, b = (x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, -1, keepdims=True), 1e-12)) for x in (a, b))
    return jnp.einsum("bsc,bdc->bsd", a, b)
