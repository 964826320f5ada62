"""Sizes of arrays and keep rates: one static number, one number per image, or a bounded number.

A `BoundedSize` is a number per image below a static bound. Array entries beyond the bound do not
exist. Entries between an image's size and the bound are masked.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import jax


@functools.partial(jax.tree_util.register_dataclass, data_fields=("value",), meta_fields=("bound",))
@dataclass(frozen=True)
class BoundedSize:
    """A number per image with a static upper bound, as in XLA's bounded dynamic shapes.

    Attributes:
      value: int32 [B] (a width, MLP size or token count) or float32 [B] (a keep rate).
      bound: largest size that any image has, or number of tokens that it keeps; the caller
        guarantees this.
    """

    value: jax.Array
    bound: int


Size = int | jax.Array | BoundedSize  # int, or int32 [B]
Rate = float | jax.Array | BoundedSize  # float in (0, 1], or float32 [B]


def array_size(size: Size, full: int) -> int:
    """Returns the static length of an array axis that holds a size.

    Args:
      size: size in use: static (the axis is exactly so long), per image, or bounded.
      full: length of the axis where a size per image has no bound.
    """
    if isinstance(size, int):
        return size
    return min(size.bound, full) if isinstance(size, BoundedSize) else full


def size_value(size: Size | Rate) -> int | float | jax.Array:
    """Returns the number, or the number per image, without its bound."""
    return size.value if isinstance(size, BoundedSize) else size
