"""The tokens of a batch on their way through the network.

Valid tokens are always a prefix: every method sorts what it keeps to the front, so that "k_i tokens of image i" is a
prefix of the array whatever k_i is, and masked and compact execution see the same tokens in the same order.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from prance_jax.core.sizes import BoundedSize, Rate, Size, array_size, size_value


class TokenSet(NamedTuple):
    """Tokens of a batch; token 0 is CLS.

    features: [B, N, C].
    size: [B, N] float32, how many original tokens each stands for; None while every size is 1.
    valid: [B, N] bool, a prefix per image; None when every token is valid (compact execution).
    owner: [B, P] int32, for each original patch the index of the token that now carries it, -1 once it was pruned.
    package: [B] float32, the score that the package token has gathered (see `package`), which is then the last valid
      token; None while there is none.

    Features of invalid tokens are arbitrary finite numbers; nothing valid depends on them.
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
        """[B, N] float32; 0 for invalid tokens."""
        size = jnp.ones(self.features.shape[:2], jnp.float32) if self.size is None else self.size
        return size if self.valid is None else jnp.where(self.valid, size, 0.0)

    @property
    def members(self) -> jax.Array:
        """[B, N] float32, original tokens that each token stands for, from `owner`: also where a method leaves sizes
        alone."""
        slots = jnp.arange(self.features.shape[1])
        held = jnp.sum(self.token_of_patch[:, :, None] == slots, axis=1, dtype=jnp.float32)
        # A class token stands for itself.
        return jnp.maximum(held.at[:, 0].add(1.0), 1.0)


class AttentionSignals(NamedTuple):
    """What one attention layer tells about its tokens; token methods and selector states are made of it.

    cls_attention: [B, N] float32, attention from CLS to each token, mean over heads; 0 for invalid tokens.
    keys: [B, N, D] float32, mean over heads.
    values: [B, N] float32, L2 norm of the values, heads concatenated; None where they do not exist yet (one step ahead).
    received: [B, N] float32, attention that each token receives, mean over heads and queries; None where no method asks
      for it, since it takes the whole attention map.
    """

    cls_attention: jax.Array
    keys: jax.Array
    values: jax.Array | None
    received: jax.Array | None = None


def initial_tokens(features: jax.Array, class_tokens: int = 1) -> TokenSet:
    """All tokens valid and of size one. features: [B, class tokens + P, C], CLS first."""
    batch, tokens, _ = features.shape
    token_of_patch = jnp.arange(class_tokens, tokens, dtype=jnp.int32)
    token_of_patch = jnp.broadcast_to(token_of_patch, (batch, tokens - class_tokens))
    return TokenSet(features, None, None, token_of_patch)


def num_keep_at(count: Size, keep: Rate, floor: int) -> Size:
    """floor(keep x count), at least `floor`, at most `count`; both factors in float32 so that int and array agree.

    A NaN rate (possible only inside a compiled program; the doors refuse it) keeps everything. The bound of a `Within`
    rate bounds the result.
    """
    if isinstance(count, int) and isinstance(keep, (int, float)):
        return int(np.clip(np.floor(np.float32(keep) * np.float32(count)), min(floor, count), count))
    if isinstance(keep, BoundedSize):
        kept = num_keep_at(count, keep.value, floor)
        return BoundedSize(jnp.minimum(kept, keep.bound), keep.bound)
    keep = jnp.nan_to_num(jnp.asarray(keep, jnp.float32), nan=1.0)
    wanted = jnp.floor(keep * jnp.asarray(count, jnp.float32)).astype(jnp.int32)
    return jnp.clip(wanted, jnp.minimum(floor, count), count)


def keep_rate_for(num_keep: Size, count: Size) -> Rate:
    """A keep rate at which `kept_count(count, rate, floor)` is `left` (at most `count`): the middle of those that lead
    there, so that rounding cannot miss it. A float for ints, float32 for arrays."""
    if isinstance(count, int) and isinstance(num_keep, int):
        return min((num_keep + 0.5) / count, 1.0)
    return jnp.minimum((jnp.asarray(num_keep, jnp.float32) + 0.5) / count, 1.0)


def sort_by_importance(tokens: TokenSet, importance: jax.Array, kept: Size) -> tuple[TokenSet, jax.Array]:
    """Tokens in order of falling importance; CLS first, ties to the lower index, invalid tokens last.

    importance: [B, N]. kept: with an int only that many tokens are gathered (compact execution), with an array [B] all
    are (up to its bound, if it has one), and validity is left to the caller.
    Returns the tokens with `owner` not yet renumbered, and the rank of every old token, int32 [B, N].
    """
    order, rank = _sorting(_importance(tokens, importance))
    order = order[:, : array_size(kept, tokens.features.shape[1])]
    features = jnp.take_along_axis(tokens.features, order[:, :, None], axis=1)
    size = None if tokens.size is None else jnp.take_along_axis(tokens.size, order, axis=1)
    valid = None if tokens.valid is None else jnp.take_along_axis(tokens.valid, order, axis=1)
    return TokenSet(features, size, valid, tokens.token_of_patch), rank


def ranks(tokens: TokenSet, importance: jax.Array) -> jax.Array:
    """int32 [B, N]: place of every token by falling importance [B, N]; CLS first, ties to the lower index, invalid last."""
    return _sorting(_importance(tokens, importance))[1]


def descending(values: jax.Array) -> jax.Array:
    """int32 [B, N]: place of every value in falling order, ties to the lower index."""
    return _sorting(values)[1]


def _importance(tokens: TokenSet, importance: jax.Array) -> jax.Array:
    importance = importance.astype(jnp.float32)
    if tokens.valid is not None:
        importance = jnp.where(tokens.valid, importance, -jnp.inf)
    return importance.at[:, 0].set(jnp.inf)


def _sorting(values: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The order that makes values [B, N] fall, and the place of each in it."""
    # Not `top_k` and a scatter: over several devices the compiler gathers the batch for those, and for sorting it does not.
    order = jnp.argsort(-values, axis=1, stable=True)
    return order, jnp.argsort(order, axis=1)


def resized(tokens: TokenSet, slots: int) -> TokenSet:
    """The first `slots` places, which hold all valid tokens, or more places, invalid ones behind."""
    more = slots - tokens.features.shape[1]

    def fit(x: jax.Array | None) -> jax.Array | None:
        if x is None or not more:
            return x
        return jnp.pad(x, ((0, 0), (0, more), *[(0, 0)] * (x.ndim - 2))) if more > 0 else x[:, :slots]

    return tokens._replace(features=fit(tokens.features), size=fit(tokens.size), valid=fit(tokens.valid))


def prefix(slots: int, kept: Size) -> jax.Array:
    """bool [B, slots] (fewer if `kept` has a lower bound): the first kept[b] entries."""
    return jnp.arange(array_size(kept, slots)) < size_value(kept)[:, None]


def compose_index(token_of_patch: jax.Array, mapping: jax.Array) -> jax.Array:
    """Follows each original patch through one reduction. mapping: [B, N] int32, new index of every old token or -1."""
    moved = jnp.take_along_axis(mapping, jnp.maximum(token_of_patch, 0), axis=1)
    return jnp.where(token_of_patch < 0, -1, moved)
