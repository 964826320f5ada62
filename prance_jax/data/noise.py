"""A data source of random images, for measuring speed and memory without a data set."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from prance_jax.core.fields import NumChannels, NumImages, Side, check_fields
from prance_jax.data.arrays import Arrays, from_arrays
from prance_jax.data.check_images import ANY_VALUE


@dataclass(frozen=True)
class NoiseConfig:
    """Shape of a data set of random images.

    Attributes:
      image_size: side of an image in pixels.
      channels: channels of an image.
      num_classes: number of classes.
      images: number of images in each split.
    """

    image_size: Side = 224
    channels: NumChannels = 3
    num_classes: NumImages = 1000
    images: NumImages = 64

    def __post_init__(self):
        check_fields(self, "noise")


def load_noise_source(config: NoiseConfig) -> Arrays:
    """Makes a source of standard normal images with random labels, the same at every call.

    It has the splits train, validation and test.
    """
    rng = np.random.default_rng(0)
    shape = (config.images, config.image_size, config.image_size, config.channels)

    def draw():
        return rng.standard_normal(shape, np.float32), rng.integers(0, config.num_classes, config.images)

    return from_arrays(
        draw(), num_classes=config.num_classes, value_range=ANY_VALUE, validation=draw(), test=draw()
    )
