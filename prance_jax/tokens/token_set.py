"""The tokens of a batch on their way through the network.

Valid tokens are always a prefix: every method sorts the tokens that it keeps to the front. So
"tokens 0 to k_i of image i" is a prefix of the array for every k_i, and masked and compact
execution have the same tokens in the same order.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from prance_jax.core.sizes import BoundedSize, Rate, Size, array_size, size_value


class TokenSet(NamedTuple):
    """Tokens of a batch: prefix tokens (CLS first, if there is one), then the others.

    Features of invalid tokens are arbitrary finite numbers; nothing valid depends on them.

    Attributes:
      features: [B, N, C].
      size: float32 [B, N], original tokens that each token represents; None: sizes are not tracked, or all 1.
      valid: bool [B, N], a prefix per image; None when every token is valid (compact execution).
      token_of_patch: int32 [B, P], for each original patch the index of the token that contains it
        now; -1 once it was pruned.
      package: float32 [B], total score of the package token, which is then the last valid token;
        None if there is none. See `prance_jax.tokens.methods.spvit_package`.
    """

    features: jax.Array
    size: jax.Array | None
    valid: jax.Array | None
    token_of_patch: jax.Array
    package: jax.Array | None = None

    @property
    def count(self) -> Size:
        """Number of valid tokens: int when all are valid, else int32 [B]."""
        return self.features.shape[1] if self.valid is None else self.valid.sum(axis=1, dtype=jnp.int32)

    @property
    def sizes(self) -> jax.Array:
        """Sizes as an array, float32 [B, N]; 0 for invalid tokens."""
        size = jnp.ones(self.features.shape[:2], jnp.float32) if self.size is None else self.size
        return size if self.valid is None else jnp.where(self.valid, size, 0.0)

    @property
    def members(self) -> jax.Array:
        """Original tokens that each token contains, float32 [B, N].

        Counted from `token_of_patch`, so it also holds where a method does not update sizes.
        """
        slots = jnp.arange(self.features.shape[1], dtype=jnp.int32)
        patches = jnp.sum(self.token_of_patch[:, :, None] == slots, axis=1, dtype=jnp.float32)
        # Token 0, a prefix token, counts as one.
        return jnp.maximum(patches.at[:, 0].add(1.0), 1.0)


class AttentionSignals(NamedTuple):
    """What one attention layer reveals about its tokens: input of token methods and the selector.

    Attributes:
      cls_attention: float32 [B, N], attention from CLS to each token, mean over heads; 0 for
        invalid tokens. In a network without CLS it is `received`.
      keys: float32 [B, N, D], mean over heads.
      values: float32 [B, N], L2 norm of the values, heads concatenated; None where they are not
        computed yet (one step ahead).
      received: float32 [B, N], attention that each token receives, mean over heads and queries. It
        needs the whole attention map, so it is None unless the method needs it.
    """

    cls_attention: jax.Array
    keys: jax.Array
    values: jax.Array | None
    received: jax.Array | None = None


def initial_tokens(features: jax.Array, num_prefix_tokens: int = 1) -> TokenSet:
    """Returns a token set with all tokens valid and of size one.

    Args:
      features: [B, num_prefix_tokens + P, C], CLS first.
      num_prefix_tokens: CLS and other tokens that are no patches, say a distillation token.
    """
    batch, tokens, _ = features.shape
    token_of_patch = jnp.arange(num_prefix_tokens, tokens, dtype=jnp.int32)
    token_of_patch = jnp.broadcast_to(token_of_patch, (batch, tokens - num_prefix_tokens))
    return TokenSet(features, None, None, token_of_patch)


def num_keep_at(count: Size, keep: Rate, floor: int) -> Size:
    """Returns floor(keep x count), at least `floor` and at most `count`.

    Both factors are float32, so that ints and arrays give the same number.

    Args:
      count: tokens that arrive, int or int32 [B].
      keep: keep rate. NaN keeps every token; it is possible only inside `jit`, since inputs are
        checked. The bound of a `BoundedSize` bounds the result.
      floor: smallest result, unless fewer tokens arrive.
    """
    if isinstance(count, int) and isinstance(keep, (int, float)):
        return int(np.clip(np.floor(np.float32(keep) * np.float32(count)), min(floor, count), count))
    if isinstance(keep, BoundedSize):
        num_keep = num_keep_at(count, keep.value, floor)
        return BoundedSize(jnp.minimum(num_keep, keep.bound), keep.bound)
    keep = jnp.nan_to_num(jnp.asarray(keep, jnp.float32), nan=1.0)
    requested = jnp.floor(keep * jnp.asarray(count, jnp.float32)).astype(jnp.int32)
    return jnp.clip(requested, jnp.minimum(floor, count), count)


def keep_rate_for(num_keep: Size, count: Size) -> Rate:
    """Returns a keep rate at which `num_keep_at(count, rate, floor)` is `num_keep`.

    It is the middle of all such rates, so that rounding does not change the result.

    Args:
      num_keep: tokens to keep, at most `count`.
      count: tokens that arrive.

    Returns:
      A float for ints, float32 for arrays.
    """
    if isinstance(count, int) and isinstance(num_keep, int):
        return min((num_keep + 0.5) / count, 1.0)
    return jnp.minimum((jnp.asarray(num_keep, jnp.float32) + 0.5) / count, 1.0)


def sort_by_importance(tokens: TokenSet, importance: jax.Array, num_keep: Size) -> tuple[TokenSet, jax.Array]:
    """Sorts tokens by falling importance: CLS first, ties by lower index, invalid tokens last.

    Args:
      tokens: tokens [B, N].
      importance: [B, N].
      num_keep: an int gathers only that many tokens (compact); int32 [B] gathers all of them, up to
        its bound if it has one, and the caller sets their validity.

    Returns:
      The tokens, with the indices in `token_of_patch` not yet updated, and the rank of every old
      token, int32 [B, N].
    """
    order, rank = _sorting(_importance(tokens, importance))
    order = order[:, : array_size(num_keep, tokens.features.shape[1])]
    features = jnp.take_along_axis(tokens.features, order[:, :, None], axis=1)
    size = None if tokens.size is None else jnp.take_along_axis(tokens.size, order, axis=1)
    valid = None if tokens.valid is None else jnp.take_along_axis(tokens.valid, order, axis=1)
    return TokenSet(features, size, valid, tokens.token_of_patch), rank


def ranks(tokens: TokenSet, importance: jax.Array) -> jax.Array:
    """Returns the rank of every token by falling importance, int32 [B, N].

    CLS comes first, ties go to the lower index, invalid tokens come last.

    Args:
      tokens: tokens [B, N].
      importance: [B, N].
    """
    return _sorting(_importance(tokens, importance))[1]


def descending_rank(values: jax.Array) -> jax.Array:
    """Returns the rank of every value [B, N] in falling order, int32; ties go to the lower index."""
    return _sorting(values)[1]


def _importance(tokens: TokenSet, importance: jax.Array) -> jax.Array:
    importance = importance.astype(jnp.float32)
    if tokens.valid is not None:
        importance = jnp.where(tokens.valid, importance, -jnp.inf)
    return importance.at[:, 0].set(jnp.inf)


def _sorting(values: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The order that makes values [B, N] fall, and the rank of each value in it."""
    # Not `top_k` and a scatter: on several devices the compiler would gather the batch for those.
    order = jnp.argsort(-values, axis=1, stable=True).astype(jnp.int32)
    return order, jnp.argsort(order, axis=1).astype(jnp.int32)


def leading_tokens(tokens: TokenSet, count: int) -> TokenSet:
    """Returns the first tokens alone, all of which are valid.

    `token_of_patch` still names the tokens that were there before, so it can be shown.

    Args:
      tokens: tokens [B, N].
      count: number of tokens, class tokens as a rule.
    """
    return tokens._replace(features=tokens.features[:, :count], size=None, valid=None, package=None)


def resize_slots(tokens: TokenSet, slots: int) -> TokenSet:
    """Shortens or lengthens the arrays of a token set.

    Args:
      tokens: tokens [B, N].
      slots: new length of the token axis. If shorter, the first `slots` entries must contain all
        valid tokens; if longer, the new entries are invalid.
    """
    num_added = slots - tokens.features.shape[1]

    def resize(x: jax.Array | None) -> jax.Array | None:
        if x is None or not num_added:
            return x
        if num_added < 0:
            return x[:, :slots]
        return jnp.pad(x, ((0, 0), (0, num_added), *[(0, 0)] * (x.ndim - 2)))

    return tokens._replace(
        features=resize(tokens.features), size=resize(tokens.size), valid=resize(tokens.valid)
    )


def prefix_mask(slots: int, num_keep: Size) -> jax.Array:
    """Returns bool [B, slots]: whether an entry is among the first `num_keep` of its image.

    Args:
      slots: length of the token axis; the result is shorter if `num_keep` has a lower bound.
      num_keep: int32 [B], may be bounded.
    """
    return jnp.arange(array_size(num_keep, slots), dtype=jnp.int32) < size_value(num_keep)[:, None]


def compose_index(token_of_patch: jax.Array, mapping: jax.Array) -> jax.Array:
    """Follows each original patch through one reduction.

    Args:
      token_of_patch: int32 [B, P], before the reduction.
      mapping: int32 [B, N], new index of every old token, or -1.

    Returns:
      `token_of_patch` after the reduction.
    """
    moved = jnp.take_along_axis(mapping, jnp.maximum(token_of_patch, 0), axis=1)
    return jnp.where(token_of_patch < 0, -1, moved).astype(jnp.int32)
