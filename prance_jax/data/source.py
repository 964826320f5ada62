"""Defines the interface of every data source: training batches, and fixed sets for evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from prance_jax.core.errors import UserError

Tables = Any
"""A pytree of arrays: everything that `Source.sample` reads."""


class Split(NamedTuple):
    """A fixed set of images and labels for evaluation.

    The validation set is shuffled. Bucket choice, cost weights and the search of a static structure
    use its first images, and the images of a folder are sorted by class.

    Attributes:
      images: float32 [N, S, S, C], normalised; an array, or an object that decodes a slice on
        access.
      labels: int32 [N]; int32 [N, S, S] where every pixel has a label; int32 [N, num_classes], zeros and
        ones, where an image may have several.
      extra: arrays [N] by which reports may group (digits: `clutter`, `glyph`); may be empty.
    """

    images: np.ndarray
    labels: np.ndarray
    extra: Mapping[str, np.ndarray]

    def some(self, count: int) -> Split:
        """Returns `count` random images (at most all) in their order, decoded, the same at every call."""
        if count >= len(self.labels):
            return self._replace(images=self.images[:])
        index = np.sort(shuffled(len(self.labels))[:count])
        extra = {name: values[index] for name, values in self.extra.items()}
        return Split(self.images[index], self.labels[index], extra)


def shuffled(count: int) -> np.ndarray:
    """Returns the numbers 0 .. count - 1 in a random order, the same at every call."""
    return np.random.default_rng(0).permutation(count)


@dataclass(frozen=True)
class ClassBalance:
    """Draws from a training set that is sorted by class, with replacement, rare classes more often.

    A class is drawn with a probability proportional to its number of images to the power of the
    exponent, then one of its images. Exponent 1 draws all images equally often, 0 all classes, 0.5 is
    square-root sampling.

    Attributes:
      counts: images of each class.
      exponent: from 0 to 1.

    Reference: Decoupling Representation and Classifier for Long-Tailed Recognition (Kang et al. 2020),
      arXiv 1910.09217, eq. 1.
    """

    counts: tuple[int, ...]
    exponent: float

    @property
    def probabilities(self) -> np.ndarray:
        """Probability of each class; 0 for a class without images."""
        counts = np.array(self.counts, np.float64)
        weights = np.where(counts > 0, np.maximum(counts, 1) ** self.exponent, 0)
        return weights / weights.sum()

    @property
    def first(self) -> np.ndarray:
        """Position of the first image of each class."""
        return np.cumsum(self.counts) - self.counts

    def sample(self, key: jax.Array, count: int) -> jax.Array:
        """Returns the positions of images, int32 [count], inside `jit`.

        Args:
          key: random key.
          count: number of images; static.
        """
        class_key, image_key = jax.random.split(key)
        classes = jnp.arange(len(self.counts), dtype=jnp.int32)
        labels = jax.random.choice(
            class_key, classes, (count,), p=jnp.asarray(self.probabilities, jnp.float32)
        )
        counts, first = (jnp.asarray(values, jnp.int32) for values in (self.counts, self.first))
        return first[labels] + jax.random.randint(image_key, (count,), 0, counts[labels], dtype=jnp.int32)

    def sample_on_host(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Returns the positions of images, int [count], drawn by NumPy.

        Args:
          rng: random generator; it moves on.
          count: number of images.
        """
        labels = rng.choice(len(self.counts), count, p=self.probabilities)
        return self.first[labels] + rng.integers(0, np.array(self.counts)[labels])


def check_one_label(source: Source, what: str) -> None:
    """Raises UserError if images of a source may have several labels.

    Args:
      source: the data source.
      what: what needs one label per image, for the message.
    """
    if getattr(source, "multi_label", False):
        raise UserError(f"{what} needs one label per image; the images of this data set may have several")


class Source(Protocol):
    """Training batches that are drawn on the device, and fixed validation and test sets.

    Three members are optional. A source that is too large for the device has `batches(batch, start)`,
    which yields the tables of step `start`, `start` + 1, ..., in place of `tables`;
    `prefetch_to_device` handles both. A source with a label for every pixel has `pixels` = True;
    its labels are int32 [batch, S, S] in place of [batch]. A source whose images may have several labels
    has `multi_label` = True; its labels are int32 [batch, num_classes], zeros and ones.

    Attributes:
      image_size: side of an image in pixels.
      channels: channels of an image.
      num_classes: number of classes.
      classes: class names.
      mean: mean by channel, subtracted from values in [0, 1].
      std: divisor by channel, after the mean.
      tables: arrays for `sample`. A jitted step takes them as an argument; a closure would copy
        them into the program.
    """

    image_size: int
    channels: int
    num_classes: int
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    tables: Tables

    def sample(self, tables: Tables, key: jax.Array, batch: int) -> tuple[jax.Array, jax.Array]:
        """Draws an augmented training batch.

        Pure: the same tables, key and batch size give the same images.

        Args:
          tables: `self.tables`, or the tables of one step of `batches`.
          key: random key.
          batch: number of images; static under `jit`.

        Returns:
          Images float32 [batch, S, S, C], normalised, and labels: int32 [batch], or
          float32 [batch, num_classes] where augmentation mixes images.
        """

    def sample_plain(self, tables: Tables, key: jax.Array, batch: int) -> tuple[jax.Array, jax.Array]:
        """Draws a training batch without strong augmentation, for training the selector.

        Args:
          tables: as for `sample`.
          key: random key.
          batch: number of images; static under `jit`.

        Returns:
          Images float32 [batch, S, S, C], normalised, and labels int32 [batch].
        """

    def split(self, name: str) -> Split:
        """Returns the fixed set `name`: "validation" or "test"."""

    def to_unit(self, images: np.ndarray) -> np.ndarray:
        """Undoes the normalisation: returns values in [0, 1], for display."""
