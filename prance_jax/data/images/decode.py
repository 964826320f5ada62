"""Pictures out of files: decoded to three channels of 8 bits, cropped and resized; or a clear reason why not."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from prance_jax.data.crops import Box


class BadPicture(Exception):
    """A file that holds no picture, or half of one; the message says why."""


def decode_image(data: bytes):
    """A `PIL.Image` in mode RGB, with 8 bits a channel, of the bytes of a JPEG, PNG, WebP, ... file.

    Grey, palette, CMYK and transparent pictures are converted; 16-bit ones are scaled to 8 bits, which Pillow would clip.
    The orientation tag is not followed, as in the field's recipes. Raises BadPicture.
    """
    from PIL import Image

    try:
        image = Image.open(io.BytesIO(data))
        image.load()
    except (OSError, ValueError, SyntaxError, EOFError, struct.error, Image.DecompressionBombError) as error:
        raise BadPicture(str(error) or type(error).__name__) from error
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image, np.float64)
        # Pillow opens 16-bit grey as one of several modes, none of which says how many bits are used.
        values = values / 257 if values.max(initial=0) > 255 else values
        image = Image.fromarray(np.clip(np.round(values), 0, 255).astype(np.uint8))
    return image.convert("RGB")


def crop_image(image, side: int, box: Box) -> np.ndarray:
    """The part of a picture inside a box, resized (bicubic, antialiased): uint8 [side, side, 3]."""
    from PIL import Image

    top, left, height, width = (float(value) for value in box)
    if (height, width) == (side, side) and image.size == (side, side):
        return np.asarray(image)
    corners = (left, top, left + width, top + height)
    return np.asarray(image.resize((side, side), Image.Resampling.BICUBIC, box=corners))


def decode_all(
    count: int, one: Callable[[int], np.ndarray], side: int, threads: int = 8
) -> tuple[np.ndarray, dict[int, str]]:
    """Pictures uint8 [count, side, side, 3], `one(index)` each, and the reasons for those that could not be read."""
    pixels, problems = np.zeros((count, side, side, 3), np.uint8), {}

    def put(index: int) -> None:
        try:
            pixels[index] = one(index)
        except (BadPicture, OSError) as error:
            problems[index] = str(error)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(put, range(count), chunksize=64))
    return pixels, dict(sorted(problems.items()))


def join_problems(problems: Sequence[str], most: int = 5) -> str:
    """The first few problems in one line, and how many more there are."""
    shown = "; ".join(problems[:most])
    return shown if len(problems) <= most else f"{shown}; and {len(problems) - most} more"
