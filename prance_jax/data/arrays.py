"""A data source of arrays in memory, indexed and augmented on the device in the jitted step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from prance_jax.core.errors import UserError
from prance_jax.core.fields import Fraction, check_ranges
from prance_jax.data.augment import AugmentConfig, augment
from prance_jax.data.check_images import ANY_VALUE, check_images
from prance_jax.data.source import ClassBalance, Split, shuffled


class ArrayTables(NamedTuple):
    """Images and labels on the device: the training set, or one batch of a stream.

    Attributes:
      images: uint8 or float32 [N, S, S, C], not normalised.
      labels: int32 [N], or [N, num_classes] of zeros and ones (see `Source`).
    """

    images: jax.Array
    labels: jax.Array


@dataclass(frozen=True)
class Normalisation:
    """Normalisation by channel: (x - mean) / std of values in [0, 1].

    Attributes:
      mean: one number for each channel.
      std: one number for each channel.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def by_channel(
        cls, mean: float | Sequence[float], std: float | Sequence[float], channels: int
    ) -> Normalisation:
        """Makes a normalisation of images with a number of channels.

        Args:
          mean: one number, or one for each channel.
          std: one positive number, or one for each channel.
          channels: of an image.

        Raises:
          UserError: `mean` or `std` has another length, or a std is not positive.
        """
        normalisation = cls(_by_channel("mean", mean, channels), _by_channel("std", std, channels))
        if not min(normalisation.std) > 0:
            raise UserError(f"std is {std}; it must be positive")
        return normalisation

    def to_float(self, images: Any) -> Any:
        """Converts stored images to float32: 8-bit values to [0, 1], others unchanged."""
        eight_bits = images.dtype == np.uint8
        return images.astype(np.float32) / (255 if eight_bits else 1)

    def normalise(self, images: Any) -> Any:
        """Returns (images - mean) / std of float32 images."""
        return (images - np.float32(self.mean)) / np.float32(self.std)

    def undo(self, images: Any) -> Any:
        """Returns images x std + mean: the inverse of `normalise`."""
        return images * np.float32(self.std) + np.float32(self.mean)


class NormalisedSource:
    """Members that data sources with `classes` and a `normalisation` share."""

    classes: tuple[str, ...]
    normalisation: Normalisation

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.classes)

    @property
    def mean(self) -> tuple[float, ...]:
        """Mean by channel."""
        return self.normalisation.mean

    @property
    def std(self) -> tuple[float, ...]:
        """Divisor by channel."""
        return self.normalisation.std

    def to_unit(self, images: np.ndarray) -> np.ndarray:
        """Undoes the normalisation."""
        return self.normalisation.undo(images)


@dataclass(frozen=True, eq=False)
class Arrays(NormalisedSource):
    """The data source (`data.source.Source`) that `from_arrays` makes.

    Attributes:
      classes: class names.
      tables: the training set on the device.
      fixed_sets: images and labels by set name, as given.
      normalisation: of all images.
      augment: augmentation of training images.
      balance: how training images, sorted by class, are drawn; None: all equally often.
    """

    classes: tuple[str, ...]
    tables: ArrayTables
    fixed_sets: Mapping[str, tuple[np.ndarray, np.ndarray]]
    normalisation: Normalisation
    augment: AugmentConfig
    balance: ClassBalance | None = None
    _splits: dict[str, Split] = field(default_factory=dict, repr=False)

    @property
    def image_size(self) -> int:
        """Side of an image in pixels."""
        return self.tables.images.shape[1]

    @property
    def multi_label(self) -> bool:
        """Whether an image may have several labels."""
        return self.tables.labels.ndim == 2

    @property
    def channels(self) -> int:
        """Channels of an image."""
        return self.tables.images.shape[3]

    def sample(self, tables: ArrayTables, key: jax.Array, batch: int) -> tuple[jax.Array, jax.Array]:
        """Draws a batch with replacement and augments it.

        Args:
          tables: `self.tables`.
          key: random key.
          batch: number of images; static under `jit`.

        Returns:
          Images float32 [batch, S, S, C], normalised, and labels (see `augment.augment`).
        """
        return self._sample(tables, key, batch, self.augment)

    def sample_plain(self, tables: ArrayTables, key: jax.Array, batch: int) -> tuple[jax.Array, jax.Array]:
        """Draws a batch with replacement that is only cropped and flipped.

        Args:
          tables: `self.tables`.
          key: random key.
          batch: number of images; static under `jit`.

        Returns:
          Images float32 [batch, S, S, C], normalised, and labels, not mixed.
        """
        return self._sample(tables, key, batch, self.augment.plain)

    def split(self, name: str) -> Split:
        """Returns the fixed set `name`, normalised; the validation set is shuffled (see `Split`).

        Raises:
          UserError: `from_arrays` was given no such set.
        """
        if name not in self.fixed_sets:
            given = ", ".join(self.fixed_sets) or "none"
            raise UserError(f"these arrays have no set {name!r}; given were {given}")
        if name not in self._splits:
            images, labels = self.fixed_sets[name]
            if name == "validation":
                order = shuffled(len(labels))
                images, labels = images[order], labels[order]
            normalised = self.normalisation.normalise(self.normalisation.to_float(images))
            self._splits[name] = Split(normalised, labels, {})
        return self._splits[name]

    def _sample(self, tables: ArrayTables, key: jax.Array, batch: int, config: AugmentConfig):
        index_key, key = jax.random.split(key)
        count = -(-batch // config.repeats)
        if self.balance is None:
            index = jax.random.randint(index_key, (count,), 0, tables.labels.shape[0], dtype=jnp.int32)
        else:
            index = self.balance.sample(index_key, count)
        index = jnp.repeat(index, config.repeats)[:batch]
        images = self.normalisation.to_float(tables.images[index])
        labels = tables.labels[index]
        return augment(config, images, labels, key, self.normalisation.normalise, self.num_classes)


def from_arrays(
    train: tuple[np.ndarray, np.ndarray],
    *,
    num_classes: int,
    mean: float | Sequence[float] = 0.0,
    std: float | Sequence[float] = 1.0,
    value_range: tuple[float, float] | None = None,
    augment: AugmentConfig = AugmentConfig(),
    classes: Sequence[str] | None = None,
    balance_exponent: float = 1.0,
    **splits: tuple[np.ndarray, np.ndarray],
) -> Arrays:
    """Makes a data source from arrays of images and labels.

    Images are mapped to [0, 1] by their `value_range`, then normalised as (images - mean) / std.
    8-bit images stay 8-bit until use.

    Args:
      train: images [N, S, S, C] and integer labels [N]; or labels [N, num_classes] of zeros and ones,
        where an image may have several.
      num_classes: number of classes; labels are 0 .. num_classes - 1.
      mean: one number, or one for each channel.
      std: one positive number, or one for each channel.
      value_range: pixel values of black and white, such as (0, 65535). None: (0, 255) for uint8,
        (0, 1) for floats; other types need it. (-inf, inf) for images that are normalised already:
        any value, not mapped.
      augment: augmentation of training images.
      classes: class names for reports; by default the numbers.
      balance_exponent: exponent of `data.source.ClassBalance`: 1 draws all training images equally
        often, 0 all classes.
      **splits: `validation` and `test`, each as `train`.

    Returns:
      The data source.

    Raises:
      UserError: a set is empty, has the wrong rank, lengths that differ, labels out of range, pixels
        that are not finite or outside of their range, or a type whose range is unknown; sets differ
        in image shape; or `mean`, `std`, `augment`, `classes` or `balance_exponent` do not fit.
    """
    if value_range == ANY_VALUE and (augment.rand_augment or augment.jitter):
        raise UserError("RandAugment and jitter change images in [0, 1]; give those, with their value_range")
    checked = {
        name: check_images(name, *pair, num_classes, value_range)
        for name, pair in {"train": train, **splits}.items()
    }
    shape = checked["train"][0].shape[1:]
    for name, (images, labels) in checked.items():
        if images.shape[1:] != shape:
            raise UserError(f"{name} images are {images.shape[1:]}, training images {shape}; they must agree")
        if labels.ndim != checked["train"][1].ndim:
            raise UserError(f"{name} and training labels differ: one label per image, or several in all sets")
    classes = tuple(map(str, range(num_classes) if classes is None else classes))
    if len(classes) != num_classes:
        raise UserError(f"{len(classes)} class names for {num_classes} classes")
    normalisation = Normalisation.by_channel(mean, std, shape[-1])
    check_ranges(Fraction, balance_exponent, "balance_exponent")
    images, labels = checked.pop("train")
    balance = None
    if balance_exponent != 1:
        if labels.ndim == 2:
            raise UserError("balance_exponent needs one label per image; with several it must be 1")
        by_class = np.argsort(labels, kind="stable")
        images, labels = images[by_class], labels[by_class]
        counts = np.bincount(labels, minlength=num_classes)
        balance = ClassBalance(tuple(counts.tolist()), balance_exponent)
    tables = ArrayTables(jnp.asarray(images), jnp.asarray(labels))
    return Arrays(classes, tables, checked, normalisation, augment, balance)


def _by_channel(name: str, value: float | Sequence[float], channels: int) -> tuple[float, ...]:
    values = tuple(map(float, np.atleast_1d(value)))
    if len(values) not in (1, channels):
        raise UserError(
            f"{name} has {len(values)} numbers; expected one, or one for each of {channels} channels"
        )
    return values * (channels if len(values) == 1 else 1)
