"""Makes a data source from labelled image files: all in memory, or read during training."""

from __future__ import annotations

import os
from collections.abc import Mapping

import numpy as np

from prance_jax.core.errors import UserError
from prance_jax.data import crops
from prance_jax.data.arrays import Arrays, from_arrays
from prance_jax.data.augment import AugmentConfig
from prance_jax.data.images.decode import crop_image, decode_image
from prance_jax.data.images.records import ImagesConfig, Records
from prance_jax.data.images.stream import Stream
from prance_jax.data.images.usable import usable_images, warn_of_missing_classes


def image_source(
    config: ImagesConfig, augment: AugmentConfig, splits: Mapping[str, Records], reader: str = "threads"
) -> Arrays | Stream:
    """Makes a data source of image files.

    A warning names the classes of which a split has no image.

    Args:
      config: how images are decoded.
      augment: augmentation of training images.
      splits: 'train', 'validation' and 'test'. Classes are those of 'train'.
      reader: what reads a stream, 'threads' or 'grain' (see `Stream`).

    Raises:
      UserError: an image cannot be read and `on_bad_image` is 'error'. A stream raises it for
        validation and test images before the first batch, for a training image when it reaches it.
    """
    if not config.in_memory:
        labels = splits["train"].labels
        if labels is not None and labels.ndim == 2 and config.balance_exponent != 1:
            raise UserError(
                "data.images.balance_exponent needs one label per image; with several it must be 1"
            )
        if splits["train"].labels is None and config.balance_exponent != 1:
            raise UserError(
                f"{splits['train'].location}: labels are known only after reading, so classes cannot be "
                "balanced; set data.images.in_memory to True, or balance_exponent to 1"
            )
        if splits["train"].labels is not None:
            warn_of_missing_classes(splits["train"], splits["train"].labels)
        return Stream(
            train=splits["train"],
            fixed_sets={name: split for name, split in splits.items() if name != "train"},
            image_size=config.size,
            channels=config.channels,
            crop=config.crop,
            normalisation=config.normalisation,
            augment=augment,
            exif_orientation=config.exif_orientation,
            on_bad_image=config.on_bad_image,
            threads=config.threads or os.cpu_count() or 1,
            reader=reader,
            balance_exponent=config.balance_exponent,
        )
    arrays = {name: _decode(split, config) for name, split in splits.items()}
    classes = splits["train"].classes
    return from_arrays(
        arrays.pop("train"),
        num_classes=len(classes),
        classes=classes,
        mean=config.normalisation.mean,
        std=config.normalisation.std,
        augment=augment,
        balance_exponent=config.balance_exponent,
        **arrays,
    )


def _decode(records: Records, config: ImagesConfig) -> tuple[np.ndarray, np.ndarray]:
    """Returns the images uint8 [N, size, size, channels] that can be used, and their labels."""
    pixels = np.zeros((len(records), config.size, config.size, config.channels), np.uint8)

    def load(index: int, data: bytes) -> None:
        image = decode_image(data, config.channels, config.exif_orientation)
        box = crops.evaluation(image.height, image.width, config.crop)
        pixels[index] = crop_image(image, config.size, box)

    numbers, labels = usable_images(records, load, config.on_bad_image, config.threads or os.cpu_count() or 1)
    return pixels[numbers], labels
