"""A data source of arrays in memory: indexed on the device, inside the jitted step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from prance_jax.data.source import Split
from prance_jax.errors import UserError


class ArrayTables(NamedTuple):
    """The training set on the device: images [N, S, S, C] float32, labels [N] int32."""

    images: jax.Array
    labels: jax.Array


@dataclass(frozen=True, eq=False)
class Arrays:
    """The data source (`data.source.Source`) that `from_arrays` makes."""

    num_classes: int
    tables: ArrayTables
    splits: Mapping[str, Split]
    mean: float
    std: float

    @property
    def image_size(self) -> int:
        return self.tables.images.shape[1]

    @property
    def channels(self) -> int:
        return self.tables.images.shape[3]

    def sample(self, tables: ArrayTables, key: jax.Array, batch: int) -> tuple[jax.Array, jax.Array]:
        """A batch drawn with replacement; pure, `batch` is static."""
        drawn = jax.random.randint(key, (batch,), 0, tables.labels.shape[0])
        return tables.images[drawn], tables.labels[drawn]

    def split(self, name: str) -> Split:
        """Raises UserError for a set that was not given."""
        if name not in self.splits:
            raise UserError(
                f"these arrays have no set {name!r}; given were {', '.join(self.splits) or 'none'}"
            )
        return self.splits[name]

    def to_unit(self, images: np.ndarray) -> np.ndarray:
        return images * self.std + self.mean


def from_arrays(
    train: tuple[np.ndarray, np.ndarray],
    *,
    num_classes: int,
    mean: float = 0.0,
    std: float = 1.0,
    **splits: tuple[np.ndarray, np.ndarray],
) -> Arrays:
    """A source from (images [N, S, S, C], labels [N]) pairs: `train`, and `validation=` and `test=` where given.

    Images are normalised as (images - mean) / std. Raises UserError for a set that is empty, of the wrong rank, with
    lengths that differ, labels outside 0 .. num_classes - 1, or pixels that are not finite.
    """
    if not std > 0:
        raise UserError(f"std is {std}; it must be positive")
    checked = {name: _check(name, *pair, num_classes) for name, pair in {"train": train, **splits}.items()}
    shape = checked["train"][0].shape[1:]
    for name, (images, _) in checked.items():
        if images.shape[1:] != shape:
            raise UserError(f"{name} images are {images.shape[1:]}, training images {shape}; they must agree")
    normal = {name: ((images - mean) / std, labels) for name, (images, labels) in checked.items()}
    images, labels = normal.pop("train")
    tables = ArrayTables(jnp.asarray(images), jnp.asarray(labels))
    return Arrays(num_classes, tables, {name: Split(*pair, {}) for name, pair in normal.items()}, mean, std)


def _check(
    name: str, images: np.ndarray, labels: np.ndarray, num_classes: int
) -> tuple[np.ndarray, np.ndarray]:
    images, labels = np.asarray(images, np.float32), np.asarray(labels)
    if images.ndim != 4 or images.shape[1] != images.shape[2]:
        raise UserError(f"{name} images have shape {images.shape}; wanted [images, side, side, channels]")
    if len(images) == 0:
        raise UserError(f"{name} set is empty; give it at least one image")
    if labels.shape != (len(images),) or not np.issubdtype(labels.dtype, np.integer):
        raise UserError(
            f"{name} labels have shape {labels.shape}, type {labels.dtype}; wanted {len(images)} integers"
        )
    for index in np.flatnonzero((labels < 0) | (labels >= num_classes))[:1]:
        raise UserError(f"{name} label {labels[index]} of image {index} is outside 0 .. {num_classes - 1}")
    for index in np.flatnonzero(~np.isfinite(images).all(axis=(1, 2, 3)))[:1]:
        raise UserError(f"{name} image {index} has pixels that are not finite")
    return images, labels.astype(np.int32)
