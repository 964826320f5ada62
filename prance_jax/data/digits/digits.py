"""The embedded data set: cluttered digits, drawn on the device from scikit-learn's digits.

An image shows one digit of the handwritten 8x8 UCI set (`sklearn.datasets.load_digits`, 1797
images) at a random position and scale on a larger canvas, with 0 to `max_clutter` fragments of
other digits. Few patches matter, and images differ in difficulty: this tests methods that spend
computation per image.

Reference: the cluttered MNIST of Mnih et al., arXiv 1406.6247, section 4.1.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np

from prance_jax.core.errors import UserError
from prance_jax.data.digits.render import DigitsConfig, Glyphs, draw_digits
from prance_jax.data.source import Split

SPLITS = {"train": 0, "validation": 1, "test": 2}


def split_digits(config: DigitsConfig) -> dict[str, np.ndarray]:
    """Divides the source digits into "train", "validation" and "test".

    The splits are disjoint; each class has the same share in all of them.

    Returns:
      Sorted indices into `load_digits`, by split.
    """
    _, labels = _source_digits()
    rng = np.random.default_rng(config.seed)
    # Digits of a class are spread evenly over [0, 1), so every part of that order has each class's share.
    rank = np.empty(len(labels))
    for digit in range(10):
        members = rng.permutation(np.flatnonzero(labels == digit))
        rank[members] = (np.arange(len(members)) + rng.uniform()) / len(members)
    order = np.argsort(rank, kind="stable")
    ends = np.cumsum([0, config.train_digits, config.validation_digits])
    parts = (order[: ends[1]], order[ends[1] : ends[2]], order[ends[2] :])
    return {name: np.sort(part) for name, part in zip(SPLITS, parts)}


@dataclass(frozen=True, eq=False)
class Digits:
    """The data source (`data.source.Source`) of cluttered digits; draws fixed sets at first use.

    Attributes:
      config: how images are drawn.
      tables: training digits on the device.
      glyphs: source digits by split.
      mean: mean ink of a pixel.
      std: standard deviation of the ink.
      channels: 1.
      classes: "0" to "9".
    """

    config: DigitsConfig
    tables: Glyphs
    glyphs: dict[str, Glyphs]
    mean: tuple[float] = (0.15,)
    std: tuple[float] = (0.27,)
    channels: int = 1
    classes: tuple[str, ...] = tuple("0123456789")
    _splits: dict[str, Split] = field(default_factory=dict, repr=False)

    @property
    def image_size(self) -> int:
        """Side of an image in pixels."""
        return self.config.canvas

    @property
    def num_classes(self) -> int:
        """Number of classes: 10."""
        return len(self.classes)

    def sample(self, tables: Glyphs, key: jax.Array, batch: int) -> tuple[jax.Array, jax.Array]:
        """Draws a batch of new training images.

        Args:
          tables: `self.tables`.
          key: random key.
          batch: number of images; static under `jit`.

        Returns:
          Images float32 [batch, S, S, 1], normalised, and labels int32 [batch].
        """
        drawing = draw_digits(self.config, tables, key, batch)
        return self.normalise(drawing.images), drawing.labels

    sample_plain = sample

    def split(self, name: str) -> Split:
        """Returns the fixed "validation" or "test" set.

        Its `extra` has int32 [N] arrays: `clutter`, number of fragments, and `glyph`, index of the
        source digit.

        Raises:
          UserError: another name.
        """
        sizes = {"validation": self.config.validation_images, "test": self.config.test_images}
        if name not in sizes:
            raise UserError(f"digits have no fixed set {name!r}; use one of {', '.join(sizes)}")
        if name not in self._splits:
            self._splits[name] = self._draw_split(name, sizes[name])
        return self._splits[name]

    def to_unit(self, images: np.ndarray) -> np.ndarray:
        """Undoes the normalisation: returns ink in [0, 1]."""
        return images * self.std[0] + self.mean[0]

    def normalise(self, images):
        """Normalises ink in [0, 1] for the network."""
        return (images - self.mean[0]) / self.std[0]

    def _draw_split(self, name: str, size: int) -> Split:
        key = jax.random.fold_in(jax.random.key(self.config.seed), SPLITS[name])
        digit = jnp.arange(size, dtype=jnp.int32) % len(self.glyphs[name].labels)
        drawing = jax.jit(lambda glyphs: draw_digits(self.config, glyphs, key, size, digit))(
            self.glyphs[name]
        )
        images, labels, clutter, glyph = jax.tree.map(np.asarray, drawing)
        return Split(self.normalise(images).astype(np.float32), labels, {"clutter": clutter, "glyph": glyph})


def load_digits_source(config: DigitsConfig = DigitsConfig()) -> Digits:
    """Builds the source from scikit-learn's bundled digits.

    Raises:
      UserError: scikit-learn is missing.
    """
    pixels, labels = _source_digits()
    glyphs = {name: Glyphs(pixels[index], labels[index]) for name, index in split_digits(config).items()}
    return Digits(config, jax.tree.map(jnp.asarray, glyphs["train"]), glyphs)


def _source_digits() -> tuple[np.ndarray, np.ndarray]:
    """Returns all 1797 digits: float32 [1797, 8, 8] in [0, 1] and labels int32 [1797]."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise UserError(
            "the embedded digits come with scikit-learn, which is missing: pip install scikit-learn"
        ) from error
    data = load_digits()
    return (data.images / 16.0).astype(np.float32), data.target.astype(np.int32)
