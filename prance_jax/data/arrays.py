"""A data source of arrays in memory: indexed and augmented on the device, inside the jitted step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from prance_jax.core.errors import UserError
from prance_jax.data.augment import AugmentConfig, augment
from prance_jax.data.source import Split, shuffled


class ArrayTables(NamedTuple):
    """The training set on the device, as it was given: images [N, S, S, C] uint8 or float32, labels [N] int32."""

    images: jax.Array
    labels: jax.Array


@dataclass(frozen=True)
class Scale:
    """Normalisation by channel: (x - mean) / std, of 8-bit values divided by 255 first."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def unit(self, images: Any) -> Any:
        """Float32 of the stored values: 8-bit ones in [0, 1], others as they are."""
        eight_bits = images.dtype == np.uint8
        return images.astype(np.float32) / (255 if eight_bits else 1)

    def normalise(self, images: Any) -> Any:
        return (images - np.float32(self.mean)) / np.float32(self.std)

    def undo(self, images: Any) -> Any:
        return images * np.float32(self.std) + np.float32(self.mean)


@dataclass(frozen=True, eq=False)
class Arrays:
    """The data source (`data.source.Source`) that `from_arrays` makes. stored: the fixed sets, as they were given."""

    classes: tuple[str, ...]
    tables: ArrayTables
    stored: Mapping[str, tuple[np.ndarray, np.ndarray]]
    scale: Scale
    augment: AugmentConfig
    _splits: dict[str, Split] = field(default_factory=dict, repr=False)

    @property
    def image_size(self) -> int:
        return self.tables.images.shape[1]

    @property
    def channels(self) -> int:
        return self.tables.images.shape[3]

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def mean(self) -> tuple[float, ...]:
        return self.scale.mean

    @property
    def std(self) -> tuple[float, ...]:
        return self.scale.std

    def sample(self, tables: ArrayTables, key: jax.Array, batch: int) -> tuple[jax.Array, jax.Array]:
        """A batch drawn with replacement, augmented; pure, `batch` is static."""
        return self._draw(tables, key, batch, self.augment)

    def sample_plain(self, tables: ArrayTables, key: jax.Array, batch: int) -> tuple[jax.Array, jax.Array]:
        """The same, cropped and flipped only."""
        return self._draw(tables, key, batch, self.augment.plain)

    def split(self, name: str) -> Split:
        """The set `name`, as it was given, the validation set shuffled (see `Split`).

        Raises UserError for a set that was not given.
        """
        if name not in self.stored:
            given = ", ".join(self.stored) or "none"
            raise UserError(f"these arrays have no set {name!r}; given were {given}")
        if name not in self._splits:
            images, labels = self.stored[name]
            if name == "validation":
                order = shuffled(len(labels))
                images, labels = images[order], labels[order]
            self._splits[name] = Split(self.scale.normalise(self.scale.unit(images)), labels, {})
        return self._splits[name]

    def to_unit(self, images: np.ndarray) -> np.ndarray:
        return self.scale.undo(images)

    def _draw(self, tables: ArrayTables, key: jax.Array, batch: int, config: AugmentConfig):
        index_key, key = jax.random.split(key)
        drawn = jax.random.randint(index_key, (-(-batch // config.repeats),), 0, tables.labels.shape[0])
        drawn = jnp.repeat(drawn, config.repeats)[:batch]
        images = self.scale.unit(tables.images[drawn])
        return augment(config, images, tables.labels[drawn], key, self.scale.normalise, self.num_classes)


def from_arrays(
    train: tuple[np.ndarray, np.ndarray],
    *,
    num_classes: int,
    mean: float | Sequence[float] = 0.0,
    std: float | Sequence[float] = 1.0,
    augment: AugmentConfig = AugmentConfig(),
    classes: Sequence[str] | None = None,
    **splits: tuple[np.ndarray, np.ndarray],
) -> Arrays:
    """A source from (images [N, S, S, C], labels [N]) pairs: `train`, and `validation=` and `test=` where given.

    Images are normalised as (images - mean) / std, by channel where several numbers are given; 8-bit images are divided
    by 255 first and kept as they are until they are used. augment: of training images, which are to be in [0, 1] for it.
    classes: names, for reports.

    Raises UserError for a set that is empty, of the wrong rank, with lengths that differ, labels outside
    0 .. num_classes - 1, or pixels that are not finite.
    """
    checked = {name: _check(name, *pair, num_classes) for name, pair in {"train": train, **splits}.items()}
    shape = checked["train"][0].shape[1:]
    for name, (images, _) in checked.items():
        if images.shape[1:] != shape:
            raise UserError(f"{name} images are {images.shape[1:]}, training images {shape}; they must agree")
    classes = tuple(map(str, range(num_classes) if classes is None else classes))
    if len(classes) != num_classes:
        raise UserError(f"{len(classes)} class names for {num_classes} classes")
    scale = Scale(_by_channel("mean", mean, shape[-1]), _by_channel("std", std, shape[-1]))
    if not min(scale.std) > 0:
        raise UserError(f"std is {std}; it must be positive")
    tables = ArrayTables(*map(jnp.asarray, checked.pop("train")))
    return Arrays(classes, tables, checked, scale, augment)


def _by_channel(name: str, value: float | Sequence[float], channels: int) -> tuple[float, ...]:
    values = tuple(map(float, np.atleast_1d(value)))
    if len(values) not in (1, channels):
        raise UserError(
            f"{name} has {len(values)} numbers; wanted one, or one for each of {channels} channels"
        )
    return values * (channels if len(values) == 1 else 1)


def _check(
    name: str, images: np.ndarray, labels: np.ndarray, num_classes: int
) -> tuple[np.ndarray, np.ndarray]:
    images, labels = np.asarray(images), np.asarray(labels)
    if images.dtype != np.uint8:
        images = images.astype(np.float32)
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
    if images.dtype != np.uint8:
        for index in np.flatnonzero(~np.isfinite(images).all(axis=(1, 2, 3)))[:1]:
            raise UserError(f"{name} image {index} has pixels that are not finite")
    return images, labels.astype(np.int32)
