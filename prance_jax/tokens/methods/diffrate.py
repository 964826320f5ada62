"""Pruning and merging in every layer (DiffRate, Chen et al. 2023, arXiv 2305.17997, section 3)."""

from __future__ import annotations

from dataclasses import dataclass

import jax.numpy as jnp

from prance_jax.core.errors import UserError
from prance_jax.core.sizes import BoundedSize, Size, size_value
from prance_jax.tokens.counts import any_number
from prance_jax.tokens.method import Amount
from prance_jax.tokens.methods.prance import merge_macs, prune_merge
from prance_jax.tokens.token_set import AttentionSignals, TokenSet


def diffrate(tokens: TokenSet, signals: AttentionSignals, num_keep: Size, pruned: float = 0.5) -> TokenSet:
    """By attention from CLS: the last tokens are pruned, those before them merged into the more important ones.

    Destinations are the `left` first tokens without CLS, by the cosine of the features; a destination becomes the plain
    mean of what it is made of, its size grows by size x similarity. pruned: share of what goes that is pruned (rounded
    down); the rest is merged. The published method learns both counts per layer, see `Counted`. left: int or int32 [B].
    """
    num_keep = any_number(tokens.count, num_keep)
    return prune_merge(
        tokens, signals, after_pruning(tokens.count, num_keep, pruned), num_keep, similar_sizes=True
    )


@dataclass(frozen=True)
class Counted:
    """DiffRate with both counts of every layer as they were learned (`training.learn_counts`), in the place of `diffrate`.

    steps: of each layer the tokens that arrive, those between pruning and merging, and those that are left.
    """

    steps: tuple[tuple[int, int, int], ...]

    def __call__(self, tokens: TokenSet, signals: AttentionSignals, num_keep: int) -> TokenSet:
        """Raises UserError where tokens arrive, or should be left, that no layer was learned for."""
        arriving = tokens.features.shape[1]
        for before, between, after in self.steps:
            if (before, after) == (arriving, num_keep):
                return prune_merge(tokens, signals, between, num_keep, similar_sizes=True)
        raise UserError(
            f"diffrate: no layer was learned that leaves {num_keep} of {arriving} tokens, only {self.steps}"
        )


def after_pruning(count: Size, num_keep: Size, pruned: float) -> Size:
    """Tokens between the pruning and the merging."""
    if isinstance(count, int) and isinstance(num_keep, int):
        return count - int(pruned * (count - num_keep))
    between = count - jnp.floor(pruned * (count - size_value(num_keep))).astype(jnp.int32)
    # A bound on what is left says nothing about what is there before the merging.
    return jnp.asarray(between) if not isinstance(num_keep, BoundedSize) else between


def diffrate_macs(count: Amount, num_keep: tuple[Amount, ...], width: Amount, keys: int) -> Amount:
    between = count - ((count - num_keep[0]) // 2)
    return merge_macs(between, num_keep, width, keys)
