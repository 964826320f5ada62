"""Token reorganisation by CLS attention (EViT, Liang et al. 2022, arXiv 2202.07800, section 3)."""

from __future__ import annotations

import jax.numpy as jnp

from prance_jax.tokens.tokenset import AttentionSignals, TokenSet, renumber, sort_by_importance


def evit(tokens: TokenSet, signals: AttentionSignals, left: int, fuse: bool = True) -> TokenSet:
    """Keeps the tokens that CLS attends to most, until `left` remain, by falling attention.

    fuse: what is dropped is added up, weighted by its (not normalised) attention, in one token at the end; it is an
    ordinary token from then on and counts in `left`. The owner of dropped patches is that token, without `fuse` -1. Sizes
    are left alone: EViT's attention is not proportional to them. Compact execution only (`valid` is None).
    """
    count = tokens.features.shape[1]
    if left >= count:
        return tokens
    kept = max(1, left - 1 if fuse else left)
    ordered, rank = sort_by_importance(tokens, signals.cls_attention, count)
    shares = jnp.take_along_axis(signals.cls_attention, jnp.argsort(rank, axis=1), axis=1)
    features, size = ordered.features[:, :kept], None if ordered.size is None else ordered.size[:, :kept]
    if fuse:
        dropped = ordered.features[:, kept:].astype(jnp.float32) * shares[:, kept:, None]
        extra = dropped.sum(axis=1, keepdims=True).astype(features.dtype)
        features = jnp.concatenate([features, extra], axis=1)
        size = None if size is None else jnp.concatenate([size, jnp.ones_like(size[:, :1])], axis=1)
    mapping = jnp.where(rank < kept, rank, kept if fuse else -1)
    return TokenSet(features, size, None, renumber(tokens.owner, mapping))
