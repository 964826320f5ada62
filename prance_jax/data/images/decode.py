"""Decodes image files to 8-bit RGB, crops and resizes them."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from prance_jax.data.crops import Box


class BadImage(Exception):
    """Raised for a file that holds no complete image; the message gives the reason."""


def decode_image(data: bytes):
    """Decodes the bytes of a JPEG, PNG, WebP, ... file.

    Grey, palette, CMYK and transparent images are converted. 16-bit images are scaled to 8 bits,
    which Pillow would clip. The orientation tag is ignored, as in the common training recipes.

    Returns:
      A `PIL.Image` in mode RGB, 8 bits per channel.

    Raises:
      BadImage: the file cannot be decoded.
    """
    from PIL import Image

    try:
        image = Image.open(io.BytesIO(data))
        image.load()
    except (OSError, ValueError, SyntaxError, EOFError, struct.error, Image.DecompressionBombError) as error:
        raise BadImage(str(error) or type(error).__name__) from error
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image, np.float64)
        # Pillow opens 16-bit grey in one of several modes; none of them gives the number of bits in use.
        values = values / 257 if values.max(initial=0) > 255 else values
        image = Image.fromarray(np.clip(np.round(values), 0, 255).astype(np.uint8))
    return image.convert("RGB")


def crop_image(image, side: int, box: Box) -> np.ndarray:
    """Crops a box of an image and resizes it, bicubic and antialiased.

    Args:
      image: `PIL.Image` in mode RGB.
      side: side of the result in pixels.
      box: the part of the image that is kept.

    Returns:
      uint8 [side, side, 3].
    """
    from PIL import Image

    top, left, height, width = (float(value) for value in box)
    if (height, width) == (side, side) and image.size == (side, side):
        return np.asarray(image)
    corners = (left, top, left + width, top + height)
    return np.asarray(image.resize((side, side), Image.Resampling.BICUBIC, box=corners))


def decode_all(
    count: int, load: Callable[[int], np.ndarray], side: int, threads: int = 8
) -> tuple[np.ndarray, dict[int, str]]:
    """Decodes many images in parallel.

    Args:
      count: number of images.
      load: number of an image -> uint8 [side, side, 3]; it may raise BadImage or OSError.
      side: side of an image in pixels.
      threads: number of threads.

    Returns:
      Images uint8 [count, side, side, 3], zeros where `load` failed, and the reasons by number.
    """
    pixels, problems = np.zeros((count, side, side, 3), np.uint8), {}

    def load_into_array(index: int) -> None:
        try:
            pixels[index] = load(index)
        except (BadImage, OSError) as error:
            problems[index] = str(error)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(load_into_array, range(count), chunksize=64))
    return pixels, dict(sorted(problems.items()))


def join_problems(problems: Sequence[str], limit: int = 5) -> str:
    """Joins the first few problems in one line, with the number of others.

    Args:
      problems: one text for each problem.
      limit: largest number of problems that are listed.
    """
    text = "; ".join(problems[:limit])
    return text if len(problems) <= limit else f"{text}; and {len(problems) - limit} more"
