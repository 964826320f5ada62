"""Cluttered digits: the embedded data set, drawn on the device from scikit-learn's handwritten digits.

A digit of the 8x8 UCI set (`sklearn.datasets.load_digits`, 1797 images) at a random place and scale on a larger
canvas, with 0 to `max_clutter` fragments of other digits strewn about, after the cluttered MNIST of Mnih et al.
(arXiv 1406.6247, section 4.1). Few patches hold the answer, and images differ in how hard they are: what a
method that spends computation per image needs to be judged by.

A glyph is pasted by two small products, rows @ glyph @ columns^T, whose bilinear weights follow from place and
scale: no gather, no shape that depends on data, fast everywhere.
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
    """Indices into `load_digits` for "train", "validation" and "test": disjoint, each class in its overall share.

    Raises UserError where a split would not hold every class.
    """
    _, labels = _source_digits()
    rng = np.random.default_rng(config.seed)
    # Digits of one class are spread evenly over [0, 1); cutting that order anywhere leaves every class its share.
    rank = np.empty(len(labels))
    for digit in range(10):
        members = rng.permutation(np.flatnonzero(labels == digit))
        rank[members] = (np.arange(len(members)) + rng.uniform()) / len(members)
    order = np.argsort(rank, kind="stable")
    ends = np.cumsum([0, config.train_digits, config.validation_digits])
    if min(config.train_digits, config.validation_digits, len(labels) - ends[2]) < 20:
        raise UserError(
            f"digits: train_digits {config.train_digits} and validation_digits {config.validation_digits} must be 20 "
            f"or more each and leave 20 or more of the {len(labels)} digits for the test split"
        )
    parts = (order[: ends[1]], order[ends[1] : ends[2]], order[ends[2] :])
    return {name: np.sort(part) for name, part in zip(SPLITS, parts)}


@dataclass(frozen=True, eq=False)
class Digits:
    """The data source (`data.source.Source`). tables: the training `Glyphs`; fixed sets are drawn when asked for."""

    config: DigitsConfig
    tables: Glyphs
    glyphs: dict[str, Glyphs]
    mean: tuple[float] = (0.15,)
    std: tuple[float] = (0.27,)
    channels: int = 1
    classes: tuple[str, ...] = tuple("0123456789")
    _drawn: dict[str, Split] = field(default_factory=dict, repr=False)

    @property
    def image_size(self) -> int:
        return self.config.canvas

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    def sample(self, tables: Glyphs, key: jax.Array, batch: int) -> tuple[jax.Array, jax.Array]:
        """Fresh training images [batch, S, S, 1], normalised, and labels [batch]. Pure; `batch` is static."""
        drawing = draw_digits(self.config, tables, key, batch)
        return self.normalise(drawing.images), drawing.labels

    sample_plain = sample

    def split(self, name: str) -> Split:
        """The fixed "validation" or "test" set. extra: `clutter` and `glyph` (index of the source digit), [N] int32.

        Raises UserError for another name.
        """
        sizes = {"validation": self.config.validation_images, "test": self.config.test_images}
        if name not in sizes:
            raise UserError(f"digits have no fixed set {name!r}; use one of {', '.join(sizes)}")
        if name not in self._drawn:
            self._drawn[name] = self._draw_fixed(name, sizes[name])
        return self._drawn[name]

    def to_unit(self, images: np.ndarray) -> np.ndarray:
        """Undoes the normalisation: ink in [0, 1]."""
        return images * self.std[0] + self.mean[0]

    def normalise(self, images):
        """From ink in [0, 1] to what the network sees."""
        return (images - self.mean[0]) / self.std[0]

    def _draw_fixed(self, name: str, size: int) -> Split:
        key = jax.random.fold_in(jax.random.key(self.config.seed), SPLITS[name])
        digit = jnp.arange(size) % len(self.glyphs[name].labels)
        drawing = jax.jit(lambda glyphs: draw_digits(self.config, glyphs, key, size, digit))(
            self.glyphs[name]
        )
        images, labels, clutter, glyph = jax.tree.map(np.asarray, drawing)
        return Split(self.normalise(images).astype(np.float32), labels, {"clutter": clutter, "glyph": glyph})


def load_digits_source(config: DigitsConfig = DigitsConfig()) -> Digits:
    """Builds the source from scikit-learn's bundled digits. Raises UserError where scikit-learn is missing."""
    pixels, labels = _source_digits()
    glyphs = {name: Glyphs(pixels[index], labels[index]) for name, index in split_digits(config).items()}
    return Digits(config, jax.tree.map(jnp.asarray, glyphs["train"]), glyphs)


def _source_digits() -> tuple[np.ndarray, np.ndarray]:
    """All 1797 digits: [1797, 8, 8] float32 in [0, 1] and labels int32."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise UserError(
            "the embedded digits come with scikit-learn, which is missing: pip install scikit-learn"
        ) from error
    data = load_digits()
    return (data.images / 16.0).astype(np.float32), data.target.astype(np.int32)
