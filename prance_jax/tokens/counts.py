"""How many tokens a method can leave; every function takes ints (compact) and arrays (masked) alike."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from prance_jax.core.sizes import BoundedSize, Size, size_value
from prance_jax.tokens.token_set import TokenSet


def at_least(least: Size, num_keep: Size) -> Size:
    """`left`, raised to `least`; a bound stays (who gives one, sees to it that it holds)."""
    if isinstance(num_keep, BoundedSize):
        return BoundedSize(jnp.maximum(num_keep.value, least), num_keep.bound)
    both_static = isinstance(least, int) and isinstance(num_keep, int)
    return max(least, num_keep) if both_static else jnp.maximum(least, num_keep)


def at_most(most: Size, num_keep: Size) -> Size:
    """`left`, lowered to `most`."""
    if isinstance(num_keep, BoundedSize):
        return BoundedSize(jnp.minimum(num_keep.value, most), num_keep.bound)
    both_static = isinstance(most, int) and isinstance(num_keep, int)
    return min(most, num_keep) if both_static else jnp.minimum(most, num_keep)


def any_number(count: Size, num_keep: Size) -> Size:
    """Of methods that can leave any number of tokens: at least CLS, at most what there is."""
    return at_most(count, at_least(1, num_keep))


def at_least_two(count: Size, num_keep: Size) -> Size:
    """Of methods that gather what goes in one token: that one and CLS stay."""
    return at_most(count, at_least(2, num_keep))


def halving(count: Size, num_keep: Size) -> Size:
    """Of methods that merge pairs: at most half of the tokens go, CLS not being among them."""
    return at_most(count, at_least(count - (count - 1) // 2, num_keep))


def removes_nothing(tokens: TokenSet, num_keep: Size) -> bool:
    """Known before the program runs: compact execution with nothing to remove."""
    return isinstance(num_keep, int) and tokens.valid is None and num_keep >= tokens.features.shape[1]


def if_reduced(count: int | jax.Array, num_keep: int | jax.Array, amount: int | jax.Array) -> int | jax.Array:
    """An amount that is due where fewer tokens are left than arrive, else 0."""
    if isinstance(count, int) and isinstance(num_keep, int):
        return amount if num_keep < count else 0
    return jnp.where(num_keep < count, amount, 0)


def shift_size(size: Size, by: int) -> Size:
    """So many more; the bound moves along."""
    return BoundedSize(size.value + by, size.bound + by) if isinstance(size, BoundedSize) else size + by


def column(size: Size) -> int | jax.Array:
    """The number, ready to stand beside [B, N]."""
    size = size_value(size)
    return size if isinstance(size, int) else size[:, None]
