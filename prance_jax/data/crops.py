"""Where a picture is cut: boxes (top, left, height, width) in pixels, by NumPy on hosts and by JAX on devices."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

Number = Any

TRIES = 10
"""Boxes drawn before the centre of the picture is taken."""


class Box(NamedTuple):
    top: Number
    left: Number
    height: Number
    width: Number


def random_resized(
    uniform: Any, height: int, width: int, min_area: float = 0.08, ratio: float = 4 / 3
) -> Box:
    """A box of a random share of the area and a random aspect ratio (Inception; Szegedy et al. 2014).

    The share is uniform in [min_area, 1], the logarithm of the ratio uniform between those of 1 / ratio and ratio. The
    first of ten boxes that fits is taken; if none does, the largest central one within the ratios.

    uniform: [TRIES, 4] numbers in [0, 1), a NumPy or a JAX array; with the latter it works inside jit.
    """
    xp = uniform.__array_namespace__()
    area = height * width * (min_area + (1 - min_area) * uniform[:, 0])
    shape = xp.exp(math.log(ratio) * (2 * uniform[:, 1] - 1))
    wide, tall = xp.round(xp.sqrt(area * shape)), xp.round(xp.sqrt(area / shape))
    fits = (wide >= 1) & (wide <= width) & (tall >= 1) & (tall <= height)
    top, left = xp.floor(uniform[:, 2] * (height - tall + 1)), xp.floor(uniform[:, 3] * (width - wide + 1))
    centre = centred(height, width, min(width, round(height * ratio)), min(height, round(width * ratio)))
    first = xp.argmax(fits)
    drawn = (top, left, tall, wide)
    return Box(*(xp.where(xp.any(fits), value[first], own) for value, own in zip(drawn, centre)))


def centred(height: int, width: int, wide: int, tall: int) -> Box:
    """A box of wide x tall pixels in the middle."""
    return Box((height - tall) // 2, (width - wide) // 2, tall, wide)


def evaluation(height: int, width: int, share: float) -> Box:
    """The central square whose side is `share` of the shorter side: resize and centre crop in one step.

    The usual recipe for 224 pixels, resize to 256 and crop, has share 0.875.
    """
    side = share * min(height, width)
    return Box((height - side) / 2, (width - side) / 2, side, side)
