"""One door to every data source: a config in, a `Source` out."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field

import numpy as np

from prance_jax.core.errors import UserError
from prance_jax.data.arrays import Scale, from_arrays
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
    """name: 'digits', the embedded cluttered digits; 'digit_masks', the same labelled by pixel (the segment
    command's); 'folder', pictures in folders or zips; 'tfds', a set of TensorFlow Datasets; 'noise', for measurements without
    data.

    images, augment: how the pictures of 'folder' and 'tfds' become images, and what happens to training images; the digits are
    drawn afresh for every step.
    """

    name: str = "digits"
    digits: DigitsConfig = field(default_factory=DigitsConfig)
    noise: NoiseConfig = field(default_factory=NoiseConfig)
    folder: FolderConfig = field(default_factory=FolderConfig)
    tfds: TfdsConfig = field(default_factory=TfdsConfig)
    images: ImagesConfig = field(default_factory=ImagesConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)


@dataclass(frozen=True)
class _NoPictures:
    classes: tuple[str, ...]
    where: str = "a stand-in"

    def __len__(self) -> int:
        return 0


def placeholder_source(config: DataConfig) -> Source:
    """A source of the config's image size without its images, for what is timed or compiled and learns nothing.

    Of pictures the classes are not known without them: `noise.num_classes` stands for them.
    """
    if config.name not in ("folder", "tfds"):
        return load_source(config)
    side, classes = config.images.size, config.noise.num_classes
    if not config.images.in_memory:
        # Its batches come as they are to be used: drawing them from a table would move them over devices.
        scale = Scale(config.images.mean, config.images.std)
        return Stream(_NoPictures(tuple(map(str, range(classes)))), {}, side, 1.0, scale, config.augment)
    images, labels = np.zeros((2, side, side, 3), np.uint8), np.zeros(2, np.int32)
    return from_arrays((images, labels), num_classes=classes, augment=config.augment)


@functools.lru_cache(maxsize=4)
def load_source(config: DataConfig) -> Source:
    """The data source of a config; the same object for the same config, since compiled steps belong to a source.

    Raises UserError for an unknown name, or data that is not there or broken.
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
