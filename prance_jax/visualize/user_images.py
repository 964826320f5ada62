"""Reads a user's images as the data source prepares its test images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from prance_jax.core.errors import UserError
from prance_jax.data import crops
from prance_jax.data.images.decode import BadImage, crop_image, decode_image
from prance_jax.data.images.listing import SUFFIXES, is_hidden
from prance_jax.data.load import DataConfig
from prance_jax.data.source import Source


def read_user_images(
    paths: Sequence[str], source: Source, config: DataConfig
) -> tuple[np.ndarray, list[str]]:
    """Reads image files, cuts out the middle and normalises it.

    Args:
      paths: image files, or folders of them.
      source: the source whose size, channels and normalisation are used; one channel means grey.
      config: the settings of that source, for the share of the image that is cut out.

    Returns:
      Images float32 [N, S, S, channels], and the name of each file.

    Raises:
      UserError: a path does not exist, a folder has no image, or a file is not a readable image.
    """
    files = [file for path in paths for file in _files(Path(path))]
    # The embedded digits fill their canvas, so a user's image is shown whole there.
    share = 1.0 if config.name == "digits" else config.images.crop
    images = []
    for file in files:
        try:
            picture = decode_image(file.read_bytes(), source.channels, config.images.exif_orientation)
        except (BadImage, OSError) as error:
            raise UserError(f"{file} cannot be read as an image ({error})") from error
        box = crops.evaluation(picture.height, picture.width, share)
        pixels = crop_image(picture, source.image_size, box)
        images.append(pixels / np.float32(255))
    scaled = (np.stack(images) - np.float32(source.mean)) / np.float32(source.std)
    return scaled.astype(np.float32), [file.name for file in files]


def _files(path: Path) -> list[Path]:
    if not path.exists():
        raise UserError(f"{path} does not exist; give image files or folders of them")
    if not path.is_dir():
        return [path]
    files = sorted(
        file for file in path.iterdir() if file.suffix.lower() in SUFFIXES and not is_hidden(file.name)
    )
    if not files:
        raise UserError(f"{path} holds no image; known are {', '.join(SUFFIXES)}")
    return files
