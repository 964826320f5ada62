"""Pruning and merging in every layer (DiffRate, Chen et al. 2023, arXiv 2305.17997, section 3)."""

from __future__ import annotations

from dataclasses import dataclass

import jax.numpy as jnp

from prance_jax.core.errors import UserError
from prance_jax.core.sizes import Size, Within, number
from prance_jax.tokens.counts import anything
from prance_jax.tokens.method import Amount
from prance_jax.tokens.methods.prance import _merge_macs, prune_merge
from prance_jax.tokens.token_set import AttentionSignals, TokenSet


def diffrate(tokens: TokenSet, signals: AttentionSignals, left: Size, pruned: float = 0.5) -> TokenSet:
    """By attention from CLS: the last tokens are pruned, those before them merged into the more important ones.

    Destinations are the `left` first tokens without CLS, by the cosine of the features; a destination becomes the plain
    mean of what it is made of, its size grows by size x similarity. pruned: share of what goes that is pruned (rounded
    down); the rest is merged. The published method learns both counts per layer, see `Counted`. left: int or int32 [B].
    """
    left = anything(tokens.count, left)
    return prune_merge(tokens, signals, after_pruning(tokens.count, left, pruned), left, similar_sizes=True)


@dataclass(frozen=True)
class Counted:
    """DiffRate with both counts of every layer as they were learned (`training.learn_counts`), in the place of `diffrate`.

    steps: of each layer the tokens that arrive, those between pruning and merging, and those that are left.
    """

    steps: tuple[tuple[int, int, int], ...]

    def __call__(self, tokens: TokenSet, signals: AttentionSignals, left: int) -> TokenSet:
        """Raises UserError where tokens arrive, or should be left, that no layer was learned for."""
        arriving = tokens.features.shape[1]
        for before, between, after in self.steps:
            if (before, after) == (arriving, left):
                return prune_merge(tokens, signals, between, left, similar_sizes=True)
        raise UserError(
            f"diffrate: no layer was learned that leaves {left} of {arriving} tokens, only {self.steps}"
        )


def after_pruning(count: Size, left: Size, pruned: float) -> Size:
    """Tokens between the pruning and the merging."""
    if isinstance(count, int) and isinstance(left, int):
        return count - int(pruned * (count - left))
    between = count - jnp.floor(pruned * (count - number(left))).astype(jnp.int32)
    # A bound on what is left says nothing about what is there before the merging.
    return jnp.asarray(between) if not isinstance(left, Within) else between


def _diffrate_macs(count: Amount, left: tuple[Amount, ...], width: Amount, keys: int) -> Amount:
    between = count - ((count - left[0]) // 2)
    return _merge_macs(between, left, width, keys)
