"""Builds a data source from its config."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from prance_jax.core.errors import UserError
from prance_jax.data.arrays import from_arrays
from prance_jax.data.augment import AugmentConfig
from prance_jax.data.digits.digits import load_digits_source
from prance_jax.data.digits.masks import DigitMasks
from prance_jax.data.digits.render import DigitsConfig
from prance_jax.data.images.folder import FolderConfig, load_folder_source
from prance_jax.data.images.records import ImagesConfig
from prance_jax.data.images.stream import Stream
from prance_jax.data.images.tfds import TfdsConfig, load_tfds_source
from prance_jax.data.noise import NoiseConfig, load_noise_source
from prance_jax.data.source import Source


@dataclass(frozen=True)
class DataConfig:
    """Which data set is used, and how its images are prepared.

    Attributes:
      name: 'digits' (embedded cluttered digits), 'digit_masks' (the same with a label for every
        pixel, for the command `segment`), 'folder' (image files in folders or zips), 'tfds' (a set
        of TensorFlow Datasets) or 'noise' (random images, for measurements).
      digits: how 'digits' and 'digit_masks' are drawn; afresh for every step.
      noise: shape of 'noise'.
      folder: where the files of 'folder' are.
      tfds: which set 'tfds' is.
      images: how the files of 'folder' and 'tfds' are decoded.
      augment: augmentation of the training images of 'folder' and 'tfds'.
    """

    name: Literal["digits", "digit_masks", "folder", "tfds", "noise"] = "digits"
    digits: DigitsConfig = field(default_factory=DigitsConfig)
    noise: NoiseConfig = field(default_factory=NoiseConfig)
    folder: FolderConfig = field(default_factory=FolderConfig)
    tfds: TfdsConfig = field(default_factory=TfdsConfig)
    images: ImagesConfig = field(default_factory=ImagesConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)

    @property
    def image_shape(self) -> tuple[int, int]:
        """Side of an image in pixels, and its channels."""
        if self.name in ("digits", "digit_masks"):
            return self.digits.canvas, 1
        if self.name == "noise":
            return self.noise.image_size, self.noise.channels
        return self.images.size, self.images.channels


@dataclass(frozen=True)
class _EmptyRecords:
    """The training set of a placeholder stream."""

    classes: tuple[str, ...]
    location: str = "a placeholder source"

    def __len__(self) -> int:
        return 0


def placeholder_source(config: DataConfig) -> Source:
    """Returns a source with the config's image size but no image files, for timing and compilation.

    Image files define their classes; without them `noise.num_classes` is the number of classes.
    """
    if config.name not in ("folder", "tfds"):
        return load_source(config)
    side, classes = config.images.size, config.noise.num_classes
    if not config.images.in_memory:
        # A stream's batches need no indexing; indexing a table would move images between devices.
        records = _EmptyRecords(tuple(map(str, range(classes))))
        return Stream(
            records,
            {},
            side,
            1.0,
            config.images.normalisation,
            config.augment,
            channels=config.images.channels,
        )
    images, labels = np.zeros((2, side, side, config.images.channels), np.uint8), np.zeros(2, np.int32)
    return from_arrays((images, labels), num_classes=classes, augment=config.augment)


@functools.lru_cache(maxsize=4)
def load_source(config: DataConfig) -> Source:
    """Loads the data source of a config.

    The same config gives the same object, since compiled steps belong to a source.

    Raises:
      UserError: the name is unknown, or the data is missing or broken.
    """
    if config.name == "digits":
        return load_digits_source(config.digits)
    if config.name == "digit_masks":
        return DigitMasks(load_digits_source(config.digits))
    if config.name == "folder":
        return load_folder_source(config.folder, config.images, config.augment)
    if config.name == "tfds":
        return load_tfds_source(config.tfds, config.images, config.augment)
    if config.name == "noise":
        return load_noise_source(config.noise)
    raise UserError(
        f"data set {config.name!r} is not known; choose from digits, folder, tfds, noise, digit_masks"
    )
