"""From pictures with labels to a data source: all in memory, or read while training goes on."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping

import numpy as np

from prance_jax.core.errors import UserError
from prance_jax.data import crops
from prance_jax.data.arrays import Arrays, Scale, from_arrays
from prance_jax.data.augment import AugmentConfig
from prance_jax.data.images.decode import crop_image, decode_all, decode_image, join_problems
from prance_jax.data.images.records import ImagesConfig, Records
from prance_jax.data.images.stream import Stream

_log = logging.getLogger(__name__)


def image_source(
    config: ImagesConfig, augment: AugmentConfig, sets: Mapping[str, Records], reader: str = "threads"
) -> Arrays | Stream:
    """A source of the sets 'train', 'validation' and 'test', their classes those of the training set.

    reader: of a stream, see `data.stream.Stream`.
    Raises UserError for pictures that cannot be read unless they are to be skipped; of a stream, when it comes to them.
    """
    scale = Scale(config.mean, config.std)
    if not config.in_memory:
        rest = {name: (own, _labels(own)) for name, own in sets.items() if name != "train"}
        return Stream(
            train=sets["train"],
            fixed=rest,
            image_size=config.size,
            crop=config.crop,
            scale=scale,
            augment=augment,
            on_bad_image=config.on_bad_image,
            threads=config.threads or os.cpu_count() or 1,
            reader=reader,
        )
    arrays = {name: _decoded(own, config) for name, own in sets.items()}
    classes = sets["train"].classes
    return from_arrays(
        arrays.pop("train"),
        num_classes=len(classes),
        classes=classes,
        mean=config.mean,
        std=config.std,
        augment=augment,
        **arrays,
    )


def _labels(records: Records) -> np.ndarray:
    if records.labels is not None:
        return records.labels
    return np.array([records.get(index)[1] for index in range(len(records))], np.int32)


def _decoded(records: Records, config: ImagesConfig) -> tuple[np.ndarray, np.ndarray]:
    labels = np.zeros(len(records), np.int32)

    def one(index: int) -> np.ndarray:
        data, labels[index] = records.get(index)
        image = decode_image(data)
        return crop_image(image, config.size, crops.evaluation(image.height, image.width, config.crop))

    pixels, problems = decode_all(len(records), one, config.size, config.threads or os.cpu_count() or 1)
    good = np.ones(len(records), bool)
    good[list(problems)] = False
    lines = [f"{records.name(index)} ({reason})" for index, reason in problems.items()]
    # Of a picture that could not be read the label may be known, and then its class is not missing.
    seen = labels[good] if records.labels is None else records.labels
    counts = np.bincount(seen, minlength=len(records.classes))
    lines += [f"class {name} has no picture" for name, count in zip(records.classes, counts) if not count]
    if lines and config.on_bad_image == "error":
        raise UserError(
            f"{records.where}: {len(lines)} that cannot be used: {join_problems(lines)}; mend or remove them, or set "
            "data.images.on_bad_image to 'skip'"
        )
    if lines:
        _log.warning(
            "%s: left out %d of %d: %s", records.where, len(lines), len(records), join_problems(lines)
        )
    if not good.any():
        raise UserError(f"{records.where}: not one picture can be read: {join_problems(lines)}")
    return pixels[good], labels[good]
