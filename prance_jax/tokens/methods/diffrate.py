"""Pruning and merging in every layer (DiffRate, Chen et al. 2023, arXiv 2305.17997, section 3)."""

from __future__ import annotations

from dataclasses import dataclass

import jax.numpy as jnp

from prance_jax.core.errors import UserError
from prance_jax.core.sizes import BoundedSize, Size, size_value
from prance_jax.tokens.feasible_counts import any_count
from prance_jax.tokens.method import Amount, TokenMethod
from prance_jax.tokens.methods.prance import merge_macs, prune_merge
from prance_jax.tokens.token_set import AttentionSignals, TokenSet


def diffrate(
    tokens: TokenSet, signals: AttentionSignals, num_keep: Size, pruned_share: float = 0.5
) -> TokenSet:
    """Prunes the tokens with the lowest CLS attention and merges the next ones into kept tokens.

    A merged token goes to the most similar kept token other than CLS, by the cosine of the
    features. A kept token becomes the plain mean of its group; its size grows by size x similarity.
    The paper learns both counts per layer, see `Counted`.

    Args:
      tokens: tokens before the reduction.
      signals: signals of the attention; `cls_attention` is read.
      num_keep: tokens afterwards: int or int32 [B].
      pruned_share: share of the removed tokens that is pruned (rounded down); the rest is merged.

    Reference: DiffRate, arXiv 2305.17997, section 3.
    """
    num_keep = any_count(tokens.count, num_keep)
    num_after_prune = count_after_pruning(tokens.count, num_keep, pruned_share)
    return prune_merge(tokens, signals, num_after_prune, num_keep, similar_sizes=True)


def count_after_pruning(count: Size, num_keep: Size, pruned_share: float) -> Size:
    """Returns the tokens between pruning and merging.

    Args:
      count: tokens before.
      num_keep: tokens after.
      pruned_share: as for `diffrate`.
    """
    if isinstance(count, int) and isinstance(num_keep, int):
        return count - int(pruned_share * (count - num_keep))
    between = count - jnp.floor(pruned_share * (count - size_value(num_keep))).astype(jnp.int32)
    # A bound on the tokens after merging does not bound the tokens before it.
    return jnp.asarray(between, jnp.int32) if not isinstance(num_keep, BoundedSize) else between


@dataclass(frozen=True)
class Counted:
    """DiffRate with learned counts of each layer: a function to use in place of `diffrate`.

    The counts come from `prance_jax.training.stages.diffrate_counts`.

    Attributes:
      steps: for each layer (tokens before, tokens between pruning and merging, tokens after).
    """

    steps: tuple[tuple[int, int, int], ...]

    def __call__(self, tokens: TokenSet, signals: AttentionSignals, num_keep: int) -> TokenSet:
        """Reduces tokens as the layer with the same counts before and after does.

        Raises:
          UserError: no layer has these counts.
        """
        count = tokens.features.shape[1]
        for before, between, after in self.steps:
            if (before, after) == (count, num_keep):
                return prune_merge(tokens, signals, between, num_keep, similar_sizes=True)
        raise UserError(
            f"diffrate: no layer was learned that leaves {num_keep} of {count} tokens, only {self.steps}"
        )


def diffrate_macs(count: Amount, num_keep: tuple[Amount, ...], width: Amount, key_dim: int) -> Amount:
    """Counts the MACs of `diffrate` with half of the removed tokens pruned.

    Args:
      count: tokens before.
      num_keep: (tokens after,).
      width: channels.
      key_dim: not used.
    """
    between = count - ((count - num_keep[0]) // 2)
    return merge_macs(between, num_keep, width, key_dim)


DIFFRATE = TokenMethod("diffrate", diffrate, any_count, diffrate_macs)
