"""Multi-criteria token fusion (MCTF, Lee et al. 2024, arXiv 2403.10030, section 3)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from prance_jax.core.sizes import Size, size_value
from prance_jax.tokens.counts import column, halving, removes_nothing
from prance_jax.tokens.method import Amount
from prance_jax.tokens.methods.tome import tome_macs
from prance_jax.tokens.regroup import Grouping, regroup
from prance_jax.tokens.token_set import AttentionSignals, TokenSet, descending

INFORMATION, SIZE = 1 / 20, 1 / 40  # powers of the criteria beside similarity


def mctf(tokens: TokenSet, signals: AttentionSignals, num_keep: Size) -> TokenSet:
    """Merges tokens into the groups of `mctf_groups`; `left` remain: int or int32 [B], at most half of the tokens go."""
    num_keep = halving(tokens.count, num_keep)
    if removes_nothing(tokens, num_keep):
        return tokens
    return regroup(tokens, *mctf_groups(tokens, signals, num_keep))


def mctf_groups(tokens: TokenSet, signals: AttentionSignals, num_keep: Size) -> Grouping:
    """Groups of tokens that are similar, uninformative and small, in both directions of a matching.

    The score of a pair is similarity x information^(1/20) x size^(1/40): (1 + cosine of the features) / 2, and products
    over the two of the inverse of what a token receives of attention and of its size, each by its largest. Half of what
    goes (rounded up) are tokens at even places that merge into odd ones, the other half odd ones, with what they have
    received, that merge into the even ones that stay. CLS takes no part. A group becomes its mean weighted by attention
    x size. Order: even ones, then odd ones. No gradient flows through the matching and its weights.

    The attention is that of the layer to come, which runs on the groups (one step ahead, section 3.3; see
    `models.block.Block.attend_ahead`).
    """
    num_keep = halving(tokens.count, num_keep)
    batch, slots, _ = tokens.features.shape
    valid = jnp.ones((batch, slots), bool) if tokens.valid is None else tokens.valid
    score = jax.lax.stop_gradient(_scores(tokens, signals, valid))
    removed = column(tokens.count - size_value(num_keep))
    backward = removed // 2
    forward = removed - backward

    evens, odds = score.shape[1], score.shape[2]
    best, partner = score.max(axis=2), score.argmax(axis=2)
    gone = descending(best) < forward
    # The way back: only even tokens that stay receive; CLS and what is invalid have -inf already.
    back = jnp.where(gone[:, :, None], -jnp.inf, score).swapaxes(1, 2)
    best_back, partner_back = back.max(axis=2), back.argmax(axis=2)
    gone_back = descending(best_back) < backward

    stays = jnp.cumsum(~gone, axis=1) - 1
    kept = column((tokens.count + 1) // 2) - forward
    stays_back = kept + jnp.cumsum(~gone_back, axis=1) - 1
    odd_place = jnp.where(gone_back, jnp.take_along_axis(stays, partner_back, axis=1), stays_back)
    even_place = jnp.where(gone, jnp.take_along_axis(odd_place, partner, axis=1), stays)
    odd_place = jnp.pad(odd_place, ((0, 0), (0, evens - odds)))
    new_index = jnp.stack([even_place, odd_place], axis=2).reshape(batch, -1)[:, :slots]
    new_index = jnp.where(removed > 0, new_index, jnp.arange(slots))
    # A token that nobody attends to still weighs something: alone at its place it must stay what it is.
    weights = jnp.maximum(signals.received, 1e-9) * tokens.sizes
    return Grouping(jnp.where(valid, new_index, -1), num_keep, jax.lax.stop_gradient(weights))


def _scores(tokens: TokenSet, signals: AttentionSignals, valid: jax.Array) -> jax.Array:
    """[B, even, odd] float32, -inf where a pair cannot merge."""
    x = tokens.features.astype(jnp.float32)
    x = x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, -1, keepdims=True), 1e-12))
    similarity = (jnp.einsum("bsc,btc->bst", x[:, ::2], x[:, 1::2]) + 1) / 2

    def inverse(values: jax.Array) -> jax.Array:
        values = jnp.where(valid, 1 / jnp.maximum(values, 1e-9), 0.0)
        return values / values.max(axis=1, keepdims=True)

    information, size = inverse(signals.received), inverse(tokens.sizes)
    each = information**INFORMATION * size**SIZE
    score = similarity * each[:, ::2, None] * each[:, None, 1::2]
    pairs = (valid[:, ::2, None] & valid[:, None, 1::2]).at[:, 0].set(False)
    return jnp.where(pairs, score, -jnp.inf)


def mctf_macs(count: Amount, num_keep: tuple[Amount, ...], width: Amount, keys: int) -> Amount:
    return tome_macs(count, num_keep, width, width)
