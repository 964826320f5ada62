"""Multi-criteria token fusion (MCTF, Lee et al. 2024, arXiv 2403.10030, section 3)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from prance_jax.core.sizes import Size, size_value
from prance_jax.tokens.counts import column, removes_nothing
from prance_jax.tokens.feasible_counts import half_or_more
from prance_jax.tokens.method import Amount, TokenMethod
from prance_jax.tokens.methods.tome import tome_macs
from prance_jax.tokens.regroup import Grouping, regroup
from prance_jax.tokens.schedules import ahead_schedules
from prance_jax.tokens.token_set import AttentionSignals, TokenSet, descending_rank

# Exponents of the criteria other than similarity.
INFORMATION, SIZE = 1 / 20, 1 / 40


def mctf(tokens: TokenSet, signals: AttentionSignals, num_keep: Size) -> TokenSet:
    """Merges tokens into the groups of `mctf_groups`, after the attention.

    Args:
      tokens: tokens before the merge.
      signals: as for `mctf_groups`.
      num_keep: as for `mctf_groups`.
    """
    num_keep = half_or_more(tokens.count, num_keep)
    if removes_nothing(tokens, num_keep):
        return tokens
    return regroup(tokens, *mctf_groups(tokens, signals, num_keep))


def mctf_groups(tokens: TokenSet, signals: AttentionSignals, num_keep: Size) -> Grouping:
    """Groups tokens that are similar, uninformative and small, by matching in both directions.

    The score of a pair is similarity x information^(1/20) x size^(1/40). Similarity is
    (1 + cosine of the features) / 2. Information and size are products over both tokens of an
    inverse, relative to the largest inverse of the image: of the attention that the token receives,
    and of its size.

    Half of the removed tokens (rounded up) are even ones: they merge into odd ones. The other half
    are odd ones: with what they received they merge into the even ones that remain. CLS takes no
    part. A group becomes its mean weighted by attention x size. New order: even tokens, then odd
    ones. There is no gradient through the matching and the weights.

    The attention is that of the next layer, which then runs on the groups (one-step-ahead
    attention); see `prance_jax.models.block.Block.attention_one_step_ahead`.

    Args:
      tokens: tokens before the reduction.
      signals: signals of the attention; `received` is read.
      num_keep: tokens afterwards: int or int32 [B], half of the tokens at least.

    Reference: MCTF, arXiv 2403.10030, section 3.
    """
    num_keep = half_or_more(tokens.count, num_keep)
    batch, slots, _ = tokens.features.shape
    valid = jnp.ones((batch, slots), bool) if tokens.valid is None else tokens.valid
    score = jax.lax.stop_gradient(_scores(tokens, signals, valid))
    num_removed = column(tokens.count - size_value(num_keep))
    num_removed_odd = num_removed // 2
    num_removed_even = num_removed - num_removed_odd

    evens, odds = score.shape[1], score.shape[2]
    best, partner = score.max(axis=2), score.argmax(axis=2)
    even_merges = descending_rank(best) < num_removed_even
    # Second direction: only remaining even tokens receive; CLS and invalid tokens already have -inf.
    odd_score = jnp.where(even_merges[:, :, None], -jnp.inf, score).swapaxes(1, 2)
    odd_best, odd_partner = odd_score.max(axis=2), odd_score.argmax(axis=2)
    odd_merges = descending_rank(odd_best) < num_removed_odd

    kept_even_index = jnp.cumsum(~even_merges, axis=1) - 1
    num_even = column((tokens.count + 1) // 2) - num_removed_even
    kept_odd_index = num_even + jnp.cumsum(~odd_merges, axis=1) - 1
    odd_index = jnp.where(
        odd_merges, jnp.take_along_axis(kept_even_index, odd_partner, axis=1), kept_odd_index
    )
    even_index = jnp.where(even_merges, jnp.take_along_axis(odd_index, partner, axis=1), kept_even_index)
    odd_index = jnp.pad(odd_index, ((0, 0), (0, evens - odds)))
    new_index = jnp.stack([even_index, odd_index], axis=2).reshape(batch, -1)[:, :slots]
    new_index = jnp.where(num_removed > 0, new_index, jnp.arange(slots, dtype=jnp.int32))
    # A token without any attention must keep a weight: alone in its group it must stay what it is.
    weights = jnp.maximum(signals.received, 1e-9) * tokens.sizes
    return Grouping(jnp.where(valid, new_index, -1), num_keep, jax.lax.stop_gradient(weights))


def _scores(tokens: TokenSet, signals: AttentionSignals, valid: jax.Array) -> jax.Array:
    """float32 [B, even, odd], -inf where a pair cannot merge."""
    x = tokens.features.astype(jnp.float32)
    x = x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, -1, keepdims=True), 1e-12))
    similarity = (jnp.einsum("bsc,btc->bst", x[:, ::2], x[:, 1::2]) + 1) / 2

    def inverse(values: jax.Array) -> jax.Array:
        values = jnp.where(valid, 1 / jnp.maximum(values, 1e-9), 0.0)
        return values / values.max(axis=1, keepdims=True)

    information, size = inverse(signals.received), inverse(tokens.sizes)
    token_score = information**INFORMATION * size**SIZE
    score = similarity * token_score[:, ::2, None] * token_score[:, None, 1::2]
    can_merge = (valid[:, ::2, None] & valid[:, None, 1::2]).at[:, 0].set(False)
    return jnp.where(can_merge, score, -jnp.inf)


def mctf_macs(count: Amount, num_keep: tuple[Amount, ...], width: Amount, key_dim: int) -> Amount:
    """Counts the MACs of `mctf`: those of `tome`, with similarities of all channels.

    Args:
      count: tokens before.
      num_keep: (tokens after,).
      width: channels.
      key_dim: not used.
    """
    return tome_macs(count, num_keep, width, width)


MCTF = TokenMethod(
    "mctf",
    mctf,
    half_or_more,
    mctf_macs,
    needs_received=True,
    needs_importance=False,
    group_ahead=mctf_groups,
    schedules=ahead_schedules,
)
