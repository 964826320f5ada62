"""The embedded segmentation task: which pixels of a cluttered image belong to the digit, and to which one."""

from __future__ import annotations

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np

from prance_jax.data.digits.digits import SPLITS, Digits
from prance_jax.data.digits.render import Glyphs, draw_with_mask
from prance_jax.data.source import Split


@dataclass(frozen=True, eq=False)
class DigitMasks:
    """The data source (`data.source.Source`) of the same digits, places and fragments as the classification set of `digits`,
    labelled by pixel: 0 background and fragments, 1 + the digit's class where its ink is."""

    digits: Digits
    pixels: bool = True
    _drawn: dict[str, Split] = field(default_factory=dict, repr=False)

    @property
    def image_size(self) -> int:
        return self.digits.image_size

    @property
    def channels(self) -> int:
        return self.digits.channels

    @property
    def num_classes(self) -> int:
        return 1 + self.digits.num_classes

    @property
    def classes(self) -> tuple[str, ...]:
        return ("background", *self.digits.classes)

    @property
    def mean(self) -> tuple[float, ...]:
        return self.digits.mean

    @property
    def std(self) -> tuple[float, ...]:
        return self.digits.std

    @property
    def tables(self) -> Glyphs:
        return self.digits.tables

    def sample(self, tables: Glyphs, key: jax.Array, batch: int) -> tuple[jax.Array, jax.Array]:
        """Fresh training images [batch, S, S, 1], normalised, and labels int32 [batch, S, S]. Pure; `batch` is static."""
        drawing, masks = draw_with_mask(self.digits.config, tables, key, batch)
        return self.digits.normalise(drawing.images), masks

    sample_plain = sample

    def split(self, name: str) -> Split:
        """The fixed "validation" or "test" set: the images of the classification set, labels [N, S, S]."""
        if name not in self._drawn:
            plain = self.digits.split(name)
            self._drawn[name] = plain._replace(labels=self._masks(name, len(plain.labels)))
        return self._drawn[name]

    def to_unit(self, images: np.ndarray) -> np.ndarray:
        return self.digits.to_unit(images)

    def _masks(self, name: str, total: int) -> np.ndarray:
        glyphs, config = self.digits.glyphs[name], self.digits.config
        key = jax.random.fold_in(jax.random.key(config.seed), SPLITS[name])
        digit = jnp.arange(total) % len(glyphs.labels)
        run = jax.jit(lambda glyphs: draw_with_mask(config, glyphs, key, total, digit)[1])
        return np.asarray(run(glyphs))
