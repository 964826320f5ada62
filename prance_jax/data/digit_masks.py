"""The embedded segmentation task: which pixels of a cluttered image belong to the digit, and to which one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from prance_jax.data.digits import SPLITS, Digits, Glyphs, draw_with_mask


class Scenes(NamedTuple):
    """images [N, S, S, 1] float32, normalised. masks [N, S, S] int32: 0 background and fragments, 1 + the digit's class where
    its ink is."""

    images: np.ndarray | jax.Array
    masks: np.ndarray | jax.Array


@dataclass(frozen=True, eq=False)
class DigitMasks:
    """Scenes drawn from the same digits, places and fragments as the classification set of `digits`."""

    digits: Digits

    @property
    def classes(self) -> int:
        return 1 + self.digits.num_classes

    def sample(self, tables: Glyphs, key: jax.Array, batch: int) -> Scenes:
        """Fresh training scenes. Pure; `batch` is static."""
        drawing, masks = draw_with_mask(self.digits.config, tables, key, batch)
        return Scenes(self.digits.normalise(drawing.images), masks)

    def split(self, name: str, size: int) -> Scenes:
        """The first `size` scenes of the fixed 'validation' or 'test' set; images are those of the classification set."""
        glyphs, config = self.digits.glyphs[name], self.digits.config
        total = {"validation": config.validation_images, "test": config.test_images}[name]
        key = jax.random.fold_in(jax.random.key(config.seed), SPLITS[name])
        digit = jnp.arange(total) % len(glyphs.labels)
        run = jax.jit(lambda glyphs: draw_with_mask(config, glyphs, key, total, digit))
        drawing, masks = jax.tree.map(lambda leaf: np.asarray(leaf)[:size], run(glyphs))
        return Scenes(self.digits.normalise(drawing.images).astype(np.float32), masks)
