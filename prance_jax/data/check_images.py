"""Checks arrays of images and labels, and maps pixels to [0, 1] by their type or a stated range."""

from __future__ import annotations

import math

import numpy as np

from prance_jax.core.errors import UserError

ANY_VALUE = (-math.inf, math.inf)
"""The value range of images that are normalised already: any value, not mapped."""

_ADVICE = "give value_range, the pixel values of black and white, such as (0, 255) or (0, 65535)"


def check_images(
    name: str,
    images: np.ndarray,
    labels: np.ndarray,
    num_classes: int,
    value_range: tuple[float, float] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Checks one set of images and labels.

    Args:
      name: of the set, for messages.
      images: [N, S, S, C].
      labels: integers [N]; or zeros and ones [N, num_classes], where an image may have several labels.
      num_classes: number of classes.
      value_range: pixel values of black and white, see `data.arrays.from_arrays`.

    Returns:
      The images as they are if uint8 from 0 to 255, else float32 in [0, 1]; labels int32, shaped as given.

    Raises:
      UserError: what `data.arrays.from_arrays` states for one set.
    """
    images, labels = np.asarray(images), np.asarray(labels)
    if images.ndim != 4 or images.shape[1] != images.shape[2]:
        raise UserError(f"{name} images have shape {images.shape}; expected [images, side, side, channels]")
    if len(images) == 0:
        raise UserError(f"{name} set is empty; give it at least one image")
    if labels.shape == (len(images), num_classes):
        for index in np.flatnonzero(~np.isin(labels, (0, 1)).all(axis=1))[:1]:
            raise UserError(
                f"{name} labels of image {index} are not all 0 or 1, as several labels per image must be"
            )
        return _to_unit(name, images, value_range), labels.astype(np.int32)
    if labels.shape != (len(images),) or not np.issubdtype(labels.dtype, np.integer):
        raise UserError(
            f"{name} labels have shape {labels.shape}, type {labels.dtype}; expected {len(images)} integers, or "
            f"zeros and ones [{len(images)}, {num_classes}] where an image may have several labels"
        )
    for index in np.flatnonzero((labels < 0) | (labels >= num_classes))[:1]:
        raise UserError(f"{name} label {labels[index]} of image {index} is outside 0 .. {num_classes - 1}")
    return _to_unit(name, images, value_range), labels.astype(np.int32)


def _to_unit(name: str, images: np.ndarray, value_range: tuple[float, float] | None) -> np.ndarray:
    """Returns uint8 images from 0 to 255 as they are, others as float32 in [0, 1]."""
    if images.dtype.kind not in "buif":
        raise UserError(f"{name} images have type {images.dtype}; expected integers or floats")
    if value_range is None and (images.dtype.kind in "bf" or images.dtype == np.uint8):
        value_range = (0, 255) if images.dtype == np.uint8 else (0, 1)
    if value_range is None:
        raise UserError(f"{name} images are {images.dtype}, whose range is unknown; {_ADVICE}")
    low, high = value_range
    if not (-math.inf < low < high < math.inf or value_range == ANY_VALUE):
        raise UserError(f"value_range is {value_range}; expected the pixel values of black and white")
    if images.dtype == np.uint8 and (low, high) == (0, 255):
        return images
    for index in np.flatnonzero(~np.isfinite(images).all(axis=(1, 2, 3)))[:1]:
        raise UserError(f"{name} image {index} has pixels that are not finite")
    smallest, largest = images.min(axis=(1, 2, 3)), images.max(axis=(1, 2, 3))
    for index in np.flatnonzero((smallest < low) | (largest > high))[:1]:
        raise UserError(
            f"{name} image {index} has pixels from {float(smallest[index]):g} to {float(largest[index]):g}, "
            f"outside of {low:g} to {high:g}; clip them, or {_ADVICE}, or (-inf, inf) if they are normalised"
        )
    images = images.astype(np.float32)
    if value_range in ((0, 1), ANY_VALUE):
        return images
    return (images - np.float32(low)) / np.float32(high - low)
