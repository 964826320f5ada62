"""Images of noise, for measuring speed and memory where no data set is needed: nothing can be learned from them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from prance_jax.core.errors import UserError
from prance_jax.data.arrays import Arrays, from_arrays


@dataclass(frozen=True)
class NoiseConfig:
    """image_size, channels, num_classes: of the data set that the noise stands for. images: how many in each split."""

    image_size: int = 224
    channels: int = 3
    num_classes: int = 1000
    images: int = 64

    def __post_init__(self):
        if min(self.image_size, self.channels, self.num_classes, self.images) < 1:
            raise UserError(f"data.noise: every size must be 1 or more, not {self}")


def load_noise_source(config: NoiseConfig) -> Arrays:
    """Standard normal images with random labels, the same at every call; splits train, validation and test."""
    rng = np.random.default_rng(0)
    shape = (config.images, config.image_size, config.image_size, config.channels)

    def draw():
        return rng.standard_normal(shape, np.float32), rng.integers(0, config.num_classes, config.images)

    return from_arrays(draw(), num_classes=config.num_classes, validation=draw(), test=draw())
