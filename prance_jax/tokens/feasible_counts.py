"""Token counts that a method can produce: choices for `TokenMethod.feasible_count`.

Each function takes the tokens that arrive, the tokens that a schedule or policy requests, and the
original number of patches. It returns the nearest count that the method can produce. Counts are
ints (compact) or int32 [B] (masked), with CLS included.
"""

from __future__ import annotations

from prance_jax.core.sizes import Size
from prance_jax.tokens.counts import at_least, at_most


def any_count(count: Size, num_keep: Size, patches: int | None = None) -> Size:
    """Limits the request to 1 (CLS) and the tokens that arrive, for methods without other limits.

    Args:
      count: tokens that arrive.
      num_keep: tokens requested.
      patches: not used.
    """
    return at_most(count, at_least(1, num_keep))


def two_or_more(count: Size, num_keep: Size, patches: int | None = None) -> Size:
    """Keeps two tokens at least, for methods that fuse removed tokens into one: it and CLS stay.

    Args:
      count: tokens that arrive.
      num_keep: tokens requested.
      patches: not used.
    """
    return at_most(count, at_least(2, num_keep))


def half_or_more(count: Size, num_keep: Size, patches: int | None = None) -> Size:
    """Removes half of the tokens at most, for methods that merge pairs; CLS is in no pair.

    Args:
      count: tokens that arrive.
      num_keep: tokens requested.
      patches: not used.
    """
    return at_most(count, at_least(count - (count - 1) // 2, num_keep))
