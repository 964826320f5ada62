"""Pruning or merging, chosen per image (PPT, Wu et al. 2023, arXiv 2310.01812, section 3)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from prance_jax.core.sizes import Size, size_value
from prance_jax.tokens.counts import column, removes_nothing
from prance_jax.tokens.feasible_counts import half_or_more
from prance_jax.tokens.method import TokenMethod
from prance_jax.tokens.methods.tome import matching, tome_macs
from prance_jax.tokens.regroup import regroup
from prance_jax.tokens.schedules import three_layer_schedules
from prance_jax.tokens.token_set import AttentionSignals, TokenSet, ranks

THRESHOLD = 7e-5
"""The paper's threshold without training, at 197 tokens."""


def ppt(
    tokens: TokenSet,
    signals: AttentionSignals,
    num_keep: Size,
    threshold: float = THRESHOLD,
    scale_free: bool = False,
) -> TokenSet:
    """Prunes the least significant tokens where scores differ much; else merges pairs as `tome`.

    The score of a patch is its attention from CLS times the norm of its values, as a share of all
    patches. An image is pruned if the variance of its scores is `threshold` or more.

    Args:
      tokens: tokens before the reduction.
      signals: signals of the attention; `cls_attention`, `values` and `keys` are read.
      num_keep: tokens afterwards: int or int32 [B], half of the tokens at least.
      threshold: variance of scores from which an image is pruned.
      scale_free: compare variance x patches^2 (the squared coefficient of variation) with the
        threshold; unlike the variance, it does not fall with the number of tokens.

    Reference: PPT, arXiv 2310.01812, section 3.
    """
    num_keep = half_or_more(tokens.count, num_keep)
    if removes_nothing(tokens, num_keep):
        return tokens
    scores, is_pruned = significance(tokens, signals, threshold, scale_free)
    rank = ranks(tokens, scores)
    prune_index = jnp.where(rank < column(num_keep), rank, -1)
    is_reduced = column(tokens.count - size_value(num_keep)) > 0
    prune_index = jnp.where(is_reduced, prune_index, jnp.arange(rank.shape[1], dtype=jnp.int32))
    # A token that pruning keeps is alone at its index, so one weighted mean serves both cases.
    new_index = jnp.where(is_pruned[:, None], prune_index, matching(tokens, signals, num_keep))
    return regroup(tokens, new_index, num_keep)


def significance(
    tokens: TokenSet, signals: AttentionSignals, threshold: float, scale_free: bool
) -> tuple[jax.Array, jax.Array]:
    """Scores the tokens and chooses which images are pruned.

    Args:
      tokens: tokens before the reduction.
      signals: signals of the attention; `cls_attention` and `values` are read.
      threshold: as for `ppt`.
      scale_free: as for `ppt`.

    Returns:
      Scores, float32 [B, N] with sum 1, 0 for CLS; whether an image is pruned, bool [B].
    """
    score = (signals.cls_attention * signals.values).at[:, 0].set(0.0)
    is_patch = jnp.ones_like(score) if tokens.valid is None else tokens.valid.astype(score.dtype)
    is_patch = is_patch.at[:, 0].set(0.0)
    score = jnp.where(is_patch > 0, score, 0.0)
    share = score / score.sum(axis=1, keepdims=True)
    patches = is_patch.sum(axis=1)
    deviation = jnp.where(is_patch > 0, share - 1 / jnp.maximum(patches, 1)[:, None], 0.0)
    variance = jnp.sum(deviation**2, axis=1) / jnp.maximum(patches - 1, 1)
    return share, variance * (patches**2 if scale_free else 1) >= threshold


PPT = TokenMethod("ppt", ppt, half_or_more, tome_macs, schedules=three_layer_schedules)
