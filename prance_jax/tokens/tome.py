"""Token merging by bipartite soft matching (ToMe, Bolya et al. 2023, arXiv 2210.09461, section 3)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from prance_jax.tokens.tokenset import AttentionSignals, TokenSet, renumber


def tome(tokens: TokenSet, signals: AttentionSignals, left: int) -> TokenSet:
    """Merges the most similar pairs until `left` tokens remain; at most half of the tokens go, CLS never.

    Tokens at even places (CLS is the first) each look for the most similar one at an odd place, by the cosine of their
    keys; those with the best match are merged into it, by the mean weighted by sizes. Order: what is left of the even
    ones, then the odd ones, so that the next matching meets other pairs. Compact execution only (`valid` is None); no
    gradient flows through the matching.
    """
    batch, count, _ = tokens.features.shape
    removed = min(count - left, (count - 1) // 2)
    if removed <= 0:
        return tokens
    keys = jax.lax.stop_gradient(signals.keys.astype(jnp.float32))
    keys = keys * jax.lax.rsqrt(jnp.maximum(jnp.sum(keys * keys, -1, keepdims=True), 1e-12))
    similarity = jnp.einsum("bsd,btd->bst", keys[:, ::2], keys[:, 1::2]).at[:, 0].set(-jnp.inf)
    best, partner = similarity.max(axis=2), similarity.argmax(axis=2).astype(jnp.int32)
    order = jnp.argsort(-best, axis=1, stable=True)
    gone, stay = order[:, :removed], jnp.sort(order[:, removed:], axis=1)
    target = jnp.take_along_axis(partner, gone, axis=1)

    row = jnp.arange(batch)[:, None]
    sizes = tokens.sizes
    weighted = tokens.features.astype(jnp.float32) * sizes[:, :, None]

    def merged(x: jax.Array) -> jax.Array:
        even, odd = x[:, ::2], x[:, 1::2]
        return jnp.concatenate([even[row, stay], odd.at[row, target].add(even[row, gone])], axis=1)

    size = merged(sizes)
    features = (merged(weighted) / size[:, :, None]).astype(tokens.features.dtype)

    evens, odds, kept = similarity.shape[1], similarity.shape[2], stay.shape[1]
    place = jnp.zeros((batch, evens), jnp.int32)
    place = place.at[row, stay].set(jnp.arange(kept, dtype=jnp.int32)).at[row, gone].set(kept + target)
    odd_place = jnp.broadcast_to(kept + jnp.arange(odds, dtype=jnp.int32), (batch, odds))
    mapping = jnp.zeros((batch, count), jnp.int32).at[:, ::2].set(place).at[:, 1::2].set(odd_place)
    return TokenSet(features, size, None, renumber(tokens.owner, mapping))
