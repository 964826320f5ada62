"""Pruning or pooling, image by image and layer by layer (PPT, Wu et al. 2023, arXiv 2310.01812, section 3)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from prance_jax.tokens.tokenset import AttentionSignals, TokenSet, renumber, sort_by_importance
from prance_jax.tokens.tome import tome

THRESHOLD = 7e-5  # off the shelf, at 197 tokens


def ppt(
    tokens: TokenSet,
    signals: AttentionSignals,
    left: int,
    threshold: float = THRESHOLD,
    scale_free: bool = False,
) -> TokenSet:
    """Prunes the least significant tokens where scores differ much, else merges similar ones; `left` remain either way.

    The score of a patch is the attention that CLS pays it times the norm of its values, as a share of all patches. An
    image whose scores have a variance of `threshold` or more is pruned, any other one pooled by `tome`.
    scale_free: the threshold is on variance x patches^2 (the squared coefficient of variation), which does not shrink
    with the number of tokens. Compact execution only (`valid` is None); at most half of the tokens go.
    """
    count = tokens.features.shape[1]
    left = max(left, count - (count - 1) // 2)
    if left >= count:
        return tokens
    share, peaky = significance(signals, threshold, scale_free)
    share = jnp.pad(share, ((0, 0), (1, 0)))
    sized = tokens._replace(size=tokens.sizes)
    pruned, rank = sort_by_importance(sized, share, left)
    pruned = pruned._replace(owner=renumber(tokens.owner, jnp.where(rank < left, rank, -1)))
    pooled = tome(sized, signals, left)

    def choose(prune: jax.Array, pool: jax.Array) -> jax.Array:
        return jnp.where(peaky.reshape(-1, *(1,) * (prune.ndim - 1)), prune, pool)

    return jax.tree.map(choose, pruned, pooled)


def significance(
    signals: AttentionSignals, threshold: float, scale_free: bool
) -> tuple[jax.Array, jax.Array]:
    """Scores of the patches, float32 [B, N - 1], sum 1; and whether an image is to be pruned, bool [B]."""
    score = (signals.cls_attention * signals.values)[:, 1:]
    share = score / score.sum(axis=1, keepdims=True)
    patches = share.shape[1]
    variance = share.var(axis=1, ddof=1)
    return share, variance * (patches**2 if scale_free else 1) >= threshold
