"""Computes where an image is cropped: boxes in pixels, by NumPy on hosts and by JAX on devices."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

Number = Any

TRIES = 10
"""Number of random boxes; if none fits, the centre of the image is used."""


class Box(NamedTuple):
    """A box in an image, in pixels.

    Attributes:
      top: row of its upper edge.
      left: column of its left edge.
      height: number of rows.
      width: number of columns.
    """

    top: Number
    left: Number
    height: Number
    width: Number


def random_resized(
    uniform: Any, height: int, width: int, min_area: float = 0.08, ratio: float = 4 / 3
) -> Box:
    """Returns a box with a random share of the area and a random aspect ratio.

    The share is uniform in [min_area, 1]. The logarithm of the aspect ratio is uniform between
    those of 1 / ratio and ratio. The first box that fits is used; if none fits, the largest central
    box within these ratios.

    Args:
      uniform: [TRIES, 4] random numbers in [0, 1), NumPy or JAX; with JAX it works under `jit`.
      height: of the image, in pixels.
      width: of the image, in pixels.
      min_area: smallest share of the area.
      ratio: largest aspect ratio, width over height.

    Returns:
      The box, whole numbers of pixels.

    Reference: Going Deeper with Convolutions (Szegedy et al. 2014), section 6.
    """
    xp = uniform.__array_namespace__()
    area = height * width * (min_area + (1 - min_area) * uniform[:, 0])
    shape = xp.exp(math.log(ratio) * (2 * uniform[:, 1] - 1))
    widths, heights = xp.round(xp.sqrt(area * shape)), xp.round(xp.sqrt(area / shape))
    fits = (widths >= 1) & (widths <= width) & (heights >= 1) & (heights <= height)
    top, left = (
        xp.floor(uniform[:, 2] * (height - heights + 1)),
        xp.floor(uniform[:, 3] * (width - widths + 1)),
    )
    centre = centred(height, width, min(width, round(height * ratio)), min(height, round(width * ratio)))
    first = xp.argmax(fits)
    boxes = (top, left, heights, widths)
    return Box(*(xp.where(xp.any(fits), values[first], other) for values, other in zip(boxes, centre)))


def centred(height: int, width: int, box_width: int, box_height: int) -> Box:
    """Returns a box in the middle of an image.

    Args:
      height: of the image, in pixels.
      width: of the image, in pixels.
      box_width: width of the box, in pixels.
      box_height: height of the box, in pixels.
    """
    return Box((height - box_height) // 2, (width - box_width) // 2, box_height, box_width)


def evaluation(height: int, width: int, share: float) -> Box:
    """Returns the central square for evaluation: resize and centre crop in one step.

    Args:
      height: of the image, in pixels.
      width: of the image, in pixels.
      share: side of the square over the shorter side of the image. The usual recipe for 224 pixels,
        resize to 256 and crop, has 0.875.
    """
    side = share * min(height, width)
    return Box((height - side) / 2, (width - side) / 2, side, side)
