"""The basic operation of token methods: tokens move to new indices; equal indices are pooled."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from prance_jax.core.sizes import Size, array_size
from prance_jax.tokens.token_set import TokenSet, compose_index, prefix_mask


class Grouping(NamedTuple):
    """New index and weight of every token: arguments of `regroup`, computed before tokens move.

    Attributes:
      new_index: int32 [B, N], as for `regroup`.
      num_keep: tokens afterwards, int or int32 [B].
      weights: float32 [B, N], weight of each token in the mean of its group.
    """

    new_index: jax.Array
    num_keep: Size
    weights: jax.Array


def regroup(
    tokens: TokenSet,
    new_index: jax.Array,
    num_keep: Size,
    weights: jax.Array | None = None,
    *,
    mean: bool = True,
    sized: bool = True,
) -> TokenSet:
    """Moves every token to a new index; tokens with the same index become their weighted mean.

    This is a product with a one-hot matrix, in full precision. It has a gradient, runs on matrix
    units, and keeps a batch sharded over devices. A token alone at its index stays what it is, to
    rounding.

    Args:
      tokens: tokens [B, N].
      new_index: int32 [B, N], from 0 to num_keep - 1 without a gap; -1 drops a token.
      num_keep: tokens afterwards: an int (compact: the result has that many) or int32 [B] (masked:
        the others are invalid).
      weights: float32 [B, N]; by default the sizes.
      mean: the weighted mean, or the weighted sum.
      sized: sizes are added up. False: they stay None if they were, for methods whose attention
        ignores sizes.
    """
    slots = tokens.features.shape[1]
    sizes = tokens.sizes
    new_index = new_index if tokens.valid is None else jnp.where(tokens.valid, new_index, -1)
    features = pool_tokens(
        tokens.features, new_index, num_keep, sizes if weights is None else weights, mean=mean
    )
    size = None
    if sized or tokens.size is not None:
        moved_sizes = jnp.where(new_index >= 0, sizes, 0.0)
        size = jnp.einsum(
            "bmn,bn->bm", _one_hot(new_index, num_keep), moved_sizes, precision=jax.lax.Precision.HIGHEST
        )
    valid = None if isinstance(num_keep, int) else prefix_mask(slots, num_keep)
    return TokenSet(features, size, valid, compose_index(tokens.token_of_patch, new_index))


def pool_tokens(
    values: jax.Array, new_index: jax.Array, num_keep: Size, weights: jax.Array, *, mean: bool = True
) -> jax.Array:
    """Pools values that share an index into their weighted mean or sum.

    Args:
      values: [B, N, C]; values of dropped tokens (index -1) are not used.
      new_index: int32 [B, N], as for `regroup`.
      num_keep: groups, int or int32 [B].
      weights: float32 [B, N].
      mean: the weighted mean, or the weighted sum.

    Returns:
      [B, num_keep, C] in the type of `values`; masked, [B, N, C].
    """
    exact = jax.lax.Precision.HIGHEST
    weights, one_hot = jnp.where(new_index >= 0, weights, 0.0), _one_hot(new_index, num_keep)
    # Values of dropped tokens are arbitrary: they are zeroed before the product, not by its zeros.
    zeroed = jnp.where((new_index >= 0)[:, :, None], values.astype(jnp.float32), 0.0)
    result = jnp.einsum("bmn,bnc->bmc", one_hot * weights[:, None], zeroed, precision=exact)
    if mean:
        total = jnp.einsum("bmn,bn->bm", one_hot, weights, precision=exact)
        result = result / jnp.where(total > 0, total, 1.0)[:, :, None]
    return result.astype(values.dtype)


def _one_hot(new_index: jax.Array, num_keep: Size) -> jax.Array:
    """float32 [B, num_keep, N]: 1 where a token moves to an index."""
    return jax.nn.one_hot(new_index, array_size(num_keep, new_index.shape[1]), dtype=jnp.float32, axis=1)


def pool_macs(count, num_keep, width):
    """Counts the MACs of `pool_tokens` with a mean.

    Args:
      count: tokens before.
      num_keep: tokens after.
      width: channels.
    """
    return count * num_keep * (width + 1)


def regroup_macs(count, num_keep, width):
    """Counts the MACs of `regroup`: features, weights and sizes.

    Args:
      count: tokens before.
      num_keep: tokens after.
      width: channels.
    """
    return count * num_keep * (width + 2)
