"""Sizes of arrays and shares of tokens that are static numbers, one number per image, or bounded.

`BoundedSize` stands between a static size and one per image: each image has its own size inside a static bound. Channels
and tokens beyond the bound do not exist; those between an image's size and the bound are masked.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import jax


@functools.partial(jax.tree_util.register_dataclass, data_fields=("value",), meta_fields=("bound",))
@dataclass(frozen=True)
class BoundedSize:
    """A number per image with a static bound on the size that it leads to.

    value: int32 [B] (a width, hidden units, a token count), or float32 [B] (a keep rate).
    bound: no image has more than so many channels, or keeps more than so many tokens; the caller sees to that.
    """

    value: jax.Array
    bound: int


Size = int | jax.Array | BoundedSize  # int, or int32 [B]
Rate = float | jax.Array | BoundedSize  # float in (0, 1], or float32 [B]


def array_size(size: Size, full: int) -> int:
    """Channels or slots that an array of this size really has. full: those of a masked array without a bound."""
    if isinstance(size, int):
        return size
    return min(size.bound, full) if isinstance(size, BoundedSize) else full


def size_value(size: Size | Rate) -> int | float | jax.Array:
    """The size without its bound."""
    return size.value if isinstance(size, BoundedSize) else size
