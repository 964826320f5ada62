"""How many tokens a method can leave; every function takes ints (compact) and arrays (masked) alike."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from prance_jax.core.sizes import Size, Within, number
from prance_jax.tokens.token_set import TokenSet


def at_least(least: Size, left: Size) -> Size:
    """`left`, raised to `least`; a bound stays (who gives one, sees to it that it holds)."""
    if isinstance(left, Within):
        return Within(jnp.maximum(left.value, least), left.bound)
    both_static = isinstance(least, int) and isinstance(left, int)
    return max(least, left) if both_static else jnp.maximum(least, left)


def at_most(most: Size, left: Size) -> Size:
    """`left`, lowered to `most`."""
    if isinstance(left, Within):
        return Within(jnp.minimum(left.value, most), left.bound)
    both_static = isinstance(most, int) and isinstance(left, int)
    return min(most, left) if both_static else jnp.minimum(most, left)


def anything(count: Size, left: Size) -> Size:
    """Of methods that can leave any number of tokens: at least CLS, at most what there is."""
    return at_most(count, at_least(1, left))


def with_one_more(count: Size, left: Size) -> Size:
    """Of methods that gather what goes in one token: that one and CLS stay."""
    return at_most(count, at_least(2, left))


def halving(count: Size, left: Size) -> Size:
    """Of methods that merge pairs: at most half of the tokens go, CLS not being among them."""
    return at_most(count, at_least(count - (count - 1) // 2, left))


def nothing_goes(tokens: TokenSet, left: Size) -> bool:
    """Known before the program runs: compact execution with nothing to remove."""
    return isinstance(left, int) and tokens.valid is None and left >= tokens.features.shape[1]


def if_any_goes(count: int | jax.Array, left: int | jax.Array, amount: int | jax.Array) -> int | jax.Array:
    """An amount that is due where fewer tokens are left than arrive, else 0."""
    if isinstance(count, int) and isinstance(left, int):
        return amount if left < count else 0
    return jnp.where(left < count, amount, 0)


def shifted(size: Size, by: int) -> Size:
    """So many more; the bound moves along."""
    return Within(size.value + by, size.bound + by) if isinstance(size, Within) else size + by


def column(size: Size) -> int | jax.Array:
    """The number, ready to stand beside [B, N]."""
    size = number(size)
    return size if isinstance(size, int) else size[:, None]
