"""Decodes image files to 8-bit RGB or grey, crops and resizes them."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from prance_jax.data.crops import Box

MAX_PIXELS = 2**27
"""Largest number of pixels of an image file: 512 MB when decoded. Larger ones are bad images."""

_FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "AVIF", "JPEG2000")


class BadImage(Exception):
    """Raised for a file that holds no image that can be used; the message gives the reason."""


def decode_image(data: bytes, channels: int = 3, exif_orientation: bool = False, draft: bool = False):
    """Decodes the bytes of a JPEG, PNG, WebP, TIFF, BMP, GIF, PPM, AVIF or JPEG 2000 file.

    The content decides, not the name of the file. Colour, grey, palette, CMYK and transparent
    images are converted; of several frames the first is used. Pixels of more than 8 bits are scaled
    by their type: unsigned 16-bit (12-bit) ones by 65535 (4095), floating-point ones must be in
    [0, 1].

    Args:
      data: content of the file.
      channels: 3 for RGB, 1 for grey.
      exif_orientation: whether the image is turned as its orientation tag states. If not, it is
        read as stored, as torchvision does; Pillow turns TIFF files always.
      draft: decodes a JPEG file at an eighth of its size: faster, and enough to find damage.

    Returns:
      A `PIL.Image` in mode RGB or L, 8 bits per channel.

    Raises:
      BadImage: the file cannot be decoded, is too large, or has pixels of an unknown range.
    """
    from PIL import Image, UnidentifiedImageError

    mode = "RGB" if channels == 3 else "L"
    try:
        image = Image.open(io.BytesIO(data), formats=_formats())
        if image.width * image.height > MAX_PIXELS:
            raise BadImage(f"{image.width} x {image.height} pixels; at most {MAX_PIXELS} are decoded")
        if draft:
            image.draft(mode, (1, 1))
        image.load()
        pixels = _turn(image) if exif_orientation else image
        if image.mode == "F" or image.mode.startswith("I"):
            pixels = Image.fromarray(_to_8_bits(np.asarray(pixels, np.float32), image))
        return pixels if pixels.mode == mode else pixels.convert(mode)
    except BadImage:
        raise
    except UnidentifiedImageError as error:
        start = f"no image of a known format; it starts with {data[:8]!r}" if data else "an empty file"
        raise BadImage(start) from error
    except Exception as error:  # a damaged file can make a decoder fail in any way
        raise BadImage(str(error) or type(error).__name__) from error


@functools.lru_cache(maxsize=1)
def _formats() -> tuple[str, ...]:
    """Formats of pixels that this Pillow reads. It has others that start programs, such as EPS."""
    from PIL import Image

    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _turn(image):
    from PIL import ImageOps

    try:
        return ImageOps.exif_transpose(image)
    except Exception as error:  # as in `decode_image`
        raise BadImage(f"its orientation tag cannot be read ({error})") from error


def _to_8_bits(values: np.ndarray, image) -> np.ndarray:
    """Scales pixels of more than 8 bits by the type that the file states, never by their values."""
    from PIL.TiffImagePlugin import BITSPERSAMPLE, PHOTOMETRIC_INTERPRETATION

    tags = getattr(image, "tag_v2", {})
    if image.mode == "F":
        low, high, largest = values.min(), values.max(), 1
        if not (low >= 0 and high <= 1):
            raise BadImage(
                f"floating-point pixels from {low:g} to {high:g}; save them with black as 0 and white as 1"
            )
    elif image.mode.startswith("I;16"):
        largest = 2 ** tags.get(BITSPERSAMPLE, (16,))[0] - 1
    elif image.format in ("PNG", "PPM"):  # 16 bits that Pillow widens
        largest = 2**16 - 1
    else:
        raise BadImage("signed or 32-bit integer pixels, whose range is unknown; save 8 or unsigned 16 bits")
    values = values / largest
    if tags.get(PHOTOMETRIC_INTERPRETATION) == 0:  # white is 0; Pillow inverts 8-bit pixels only
        values = 1 - values
    return np.round(255 * values).astype(np.uint8)


def crop_image(image, side: int, box: Box) -> np.ndarray:
    """Crops a box of an image and resizes it, bicubic and antialiased.

    Args:
      image: `PIL.Image` in mode RGB or L.
      side: side of the result in pixels.
      box: the part of the image that is kept.

    Returns:
      uint8 [side, side, channels].
    """
    from PIL import Image

    top, left, height, width = (float(value) for value in box)
    if (height, width) != (side, side) or image.size != (side, side):
        corners = (left, top, left + width, top + height)
        image = image.resize((side, side), Image.Resampling.BICUBIC, box=corners)
    return np.atleast_3d(np.asarray(image))


def read_all(count: int, read: Callable[[int], None], threads: int = 8) -> dict[int, str]:
    """Reads many images in parallel.

    Args:
      count: number of images.
      read: reads the image with a number and keeps it; it may raise BadImage.
      threads: number of threads.

    Returns:
      The reasons of those that cannot be read, by number.
    """
    problems = {}

    def try_to_read(index: int) -> None:
        try:
            read(index)
        except BadImage as error:
            problems[index] = str(error)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(try_to_read, range(count), chunksize=64))
    return dict(sorted(problems.items()))


def join_problems(problems: Sequence[str], limit: int = 5) -> str:
    """Joins the first few problems in one line, with the number of others.

    Args:
      problems: one text for each problem.
      limit: largest number of problems that are listed.
    """
    text = "; ".join(problems[:limit])
    return text if len(problems) <= limit else f"{text}; and {len(problems) - limit} more"
