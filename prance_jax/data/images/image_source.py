"""Makes a data source from labelled image files: all in memory, or read during training."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping

import numpy as np

from prance_jax.core.errors import UserError
from prance_jax.data import crops
from prance_jax.data.arrays import Arrays, Normalisation, from_arrays
from prance_jax.data.augment import AugmentConfig
from prance_jax.data.images.decode import crop_image, decode_all, decode_image, join_problems
from prance_jax.data.images.records import ImagesConfig, Records
from prance_jax.data.images.stream import Stream

_log = logging.getLogger(__name__)


def image_source(
    config: ImagesConfig, augment: AugmentConfig, splits: Mapping[str, Records], reader: str = "threads"
) -> Arrays | Stream:
    """Makes a data source of image files.

    Args:
      config: how images are decoded.
      augment: augmentation of training images.
      splits: 'train', 'validation' and 'test'. Classes are those of 'train'.
      reader: what reads a stream, 'threads' or 'grain' (see `Stream`).

    Raises:
      UserError: an image cannot be read and `on_bad_image` is 'error'. A stream raises it when it
        reaches that image.
    """
    if not config.in_memory:
        return Stream(
            train=splits["train"],
            fixed_sets={name: (split, _labels(split)) for name, split in splits.items() if name != "train"},
            image_size=config.size,
            crop=config.crop,
            normalisation=Normalisation(config.mean, config.std),
            augment=augment,
            on_bad_image=config.on_bad_image,
            threads=config.threads or os.cpu_count() or 1,
            reader=reader,
        )
    arrays = {name: _decode(split, config) for name, split in splits.items()}
    classes = splits["train"].classes
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


def _decode(records: Records, config: ImagesConfig) -> tuple[np.ndarray, np.ndarray]:
    """Returns the images uint8 [N, size, size, 3] that can be read, and their labels."""
    labels = np.zeros(len(records), np.int32)

    def load(index: int) -> np.ndarray:
        data, labels[index] = records.get(index)
        image = decode_image(data)
        return crop_image(image, config.size, crops.evaluation(image.height, image.width, config.crop))

    pixels, reasons = decode_all(len(records), load, config.size, config.threads or os.cpu_count() or 1)
    is_good = np.ones(len(records), bool)
    is_good[list(reasons)] = False
    problems = [f"{records.name(index)} ({reason})" for index, reason in reasons.items()]
    # If labels are known in advance, an image that cannot be read still counts for its class.
    known_labels = labels[is_good] if records.labels is None else records.labels
    counts = np.bincount(known_labels, minlength=len(records.classes))
    problems += [f"class {name} has no image" for name, count in zip(records.classes, counts) if not count]
    if problems and config.on_bad_image == "error":
        raise UserError(
            f"{records.location}: {len(problems)} that cannot be used: {join_problems(problems)}; repair or "
            "remove them, or set data.images.on_bad_image to 'skip'"
        )
    if problems:
        _log.warning(
            "%s: left out %d of %d: %s",
            records.location,
            len(problems),
            len(records),
            join_problems(problems),
        )
    if not is_good.any():
        raise UserError(f"{records.location}: no image can be read: {join_problems(problems)}")
    return pixels[is_good], labels[is_good]
