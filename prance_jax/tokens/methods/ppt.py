"""Pruning or pooling, image by image and layer by layer (PPT, Wu et al. 2023, arXiv 2310.01812, section 3)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from prance_jax.core.sizes import Size, size_value
from prance_jax.tokens.counts import column, halving, removes_nothing
from prance_jax.tokens.methods.tome import matching
from prance_jax.tokens.regroup import regroup
from prance_jax.tokens.token_set import AttentionSignals, TokenSet, ranks

THRESHOLD = 7e-5  # off the shelf, at 197 tokens


def ppt(
    tokens: TokenSet,
    signals: AttentionSignals,
    num_keep: Size,
    threshold: float = THRESHOLD,
    scale_free: bool = False,
) -> TokenSet:
    """Prunes the least significant tokens where scores differ much, else merges similar ones; `left` remain either way.

    The score of a patch is the attention that CLS pays it times the norm of its values, as a share of all patches. An
    image whose scores have a variance of `threshold` or more is pruned, any other one pooled by `tome`.
    scale_free: the threshold is on variance x patches^2 (the squared coefficient of variation), which does not shrink
    with the number of tokens. left: int or int32 [B]; at most half of the tokens go.
    """
    num_keep = halving(tokens.count, num_keep)
    if removes_nothing(tokens, num_keep):
        return tokens
    share, peaky = significance(tokens, signals, threshold, scale_free)
    rank = ranks(tokens, share)
    pruned = jnp.where(rank < column(num_keep), rank, -1)
    pruned = jnp.where(column(tokens.count - size_value(num_keep)) > 0, pruned, jnp.arange(rank.shape[1]))
    # A pruned token is alone at its place, so one weighted mean serves both.
    new_index = jnp.where(peaky[:, None], pruned, matching(tokens, signals, num_keep))
    return regroup(tokens, new_index, num_keep)


def significance(
    tokens: TokenSet, signals: AttentionSignals, threshold: float, scale_free: bool
) -> tuple[jax.Array, jax.Array]:
    """Scores of the tokens, float32 [B, N], sum 1, CLS 0; and whether an image is to be pruned, bool [B]."""
    score = (signals.cls_attention * signals.values).at[:, 0].set(0.0)
    patch = jnp.ones_like(score) if tokens.valid is None else tokens.valid.astype(score.dtype)
    patch = patch.at[:, 0].set(0.0)
    score = jnp.where(patch > 0, score, 0.0)
    share = score / score.sum(axis=1, keepdims=True)
    patches = patch.sum(axis=1)
    spread = jnp.where(patch > 0, share - 1 / jnp.maximum(patches, 1)[:, None], 0.0)
    variance = jnp.sum(spread**2, axis=1) / jnp.maximum(patches - 1, 1)
    return share, variance * (patches**2 if scale_free else 1) >= threshold
