"""What every data source offers, so that training and evaluation need not know where images come from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

Tables = Any
"""A pytree of arrays: everything that `Source.sample` reads."""


class Split(NamedTuple):
    """A fixed set of images, the validation set in no order: plans, prices and the search of a static structure look at its
    first images, and those of a folder are all of one class.

    images: [N, S, S, C] float32, normalised; an array, or what reads its slices when they are asked for. labels: [N] int32, or
    [N, S, S] where every pixel has one.
    extra: [N] arrays that reports may group by (for the digits: `clutter`, `glyph`); may be empty.
    """

    images: np.ndarray
    labels: np.ndarray
    extra: Mapping[str, np.ndarray]

    def some(self, count: int) -> Split:
        """`count` of them drawn at random, the same at every call; all, in their order, where there are not more."""
        if count >= len(self.labels):
            return self
        drawn = np.sort(shuffled(len(self.labels))[:count])
        return Split(
            self.images[drawn], self.labels[drawn], {name: own[drawn] for name, own in self.extra.items()}
        )


def shuffled(count: int) -> np.ndarray:
    """The numbers 0 .. count - 1 in a random order, the same at every call."""
    return np.random.default_rng(0).permutation(count)


class Source(Protocol):
    """Training images drawn on the device, and fixed validation and test sets.

    `tables` is handed to a jitted step as an argument (a closure would bake it into the program);
    `sample` is pure: same tables, key and batch size, same images. A source that is too large for the device has
    `batches(batch, start)`, which yields the tables of step `start`, `start` + 1, ..., in place of `tables`; `data.feed` knows.
    One whose labels are of pixels, int32 [batch, S, S] in place of [batch], has `pixels` = True.
    """

    image_size: int
    channels: int
    num_classes: int
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    tables: Tables

    def sample(self, tables: Tables, key: jax.Array, batch: int) -> tuple[jax.Array, jax.Array]:
        """images [batch, S, S, C] float32 and labels: int32 [batch], or float32 [batch, num_classes] where augmentation
        mixes images. `batch` is static."""

    def sample_plain(self, tables: Tables, key: jax.Array, batch: int) -> tuple[jax.Array, jax.Array]:
        """The same without strong augmentation, labels int32: what the selector learns on."""

    def split(self, name: str) -> Split:
        """The fixed set `name`: "validation" or "test"."""

    def to_unit(self, images: np.ndarray) -> np.ndarray:
        """Undoes the normalisation: values in [0, 1], for pictures."""
