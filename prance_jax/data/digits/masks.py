"""The embedded segmentation task: the pixels of the digit in a cluttered image have its class."""

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
    """The data source (`data.source.Source`) of cluttered digits with a label for every pixel.

    Images are those of the classification set `digits`. Labels are 0 for background and fragments,
    and 1 + class for the ink of the digit.

    Attributes:
      digits: the classification set.
      pixels: True: labels are of pixels (see `Source`).
    """

    digits: Digits
    pixels: bool = True
    _splits: dict[str, Split] = field(default_factory=dict, repr=False)

    @property
    def image_size(self) -> int:
        """Side of an image in pixels."""
        return self.digits.image_size

    @property
    def channels(self) -> int:
        """Channels of an image."""
        return self.digits.channels

    @property
    def num_classes(self) -> int:
        """Number of classes: the background and 10 digits."""
        return 1 + self.digits.num_classes

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names."""
        return ("background", *self.digits.classes)

    @property
    def mean(self) -> tuple[float, ...]:
        """Mean ink of a pixel."""
        return self.digits.mean

    @property
    def std(self) -> tuple[float, ...]:
        """Standard deviation of the ink."""
        return self.digits.std

    @property
    def tables(self) -> Glyphs:
        """Training digits on the device."""
        return self.digits.tables

    def sample(self, tables: Glyphs, key: jax.Array, batch: int) -> tuple[jax.Array, jax.Array]:
        """Draws a batch of new training images.

        Args:
          tables: `self.tables`.
          key: random key.
          batch: number of images; static under `jit`.

        Returns:
          Images float32 [batch, S, S, 1], normalised, and labels int32 [batch, S, S].
        """
        drawing, masks = draw_with_mask(self.digits.config, tables, key, batch)
        return self.digits.normalise(drawing.images), masks

    sample_plain = sample

    def split(self, name: str) -> Split:
        """Returns the fixed "validation" or "test" set of `digits` with labels int32 [N, S, S]."""
        if name not in self._splits:
            classification = self.digits.split(name)
            masks = self._masks(name, len(classification.labels))
            self._splits[name] = classification._replace(labels=masks)
        return self._splits[name]

    def to_unit(self, images: np.ndarray) -> np.ndarray:
        """Undoes the normalisation: returns ink in [0, 1]."""
        return self.digits.to_unit(images)

    def _masks(self, name: str, count: int) -> np.ndarray:
        """Returns labels int32 [count, S, S], drawn with the keys of the classification set."""
        glyphs, config = self.digits.glyphs[name], self.digits.config
        key = jax.random.fold_in(jax.random.key(config.seed), SPLITS[name])
        digit = jnp.arange(count, dtype=jnp.int32) % len(glyphs.labels)
        draw = jax.jit(lambda glyphs: draw_with_mask(config, glyphs, key, count, digit)[1])
        return np.asarray(draw(glyphs))
