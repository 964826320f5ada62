"""A user's own pictures, prepared as a source prepares those it evaluates on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from prance_jax.core.errors import UserError
from prance_jax.data import crops
from prance_jax.data.images.decode import BadPicture, crop_image, decode_image
from prance_jax.data.load import DataConfig
from prance_jax.data.source import Source

_ENDINGS = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"}


def read_user_images(
    paths: Sequence[str], source: Source, config: DataConfig
) -> tuple[np.ndarray, list[str]]:
    """Normalised images [N, S, S, channels] of picture files, or of those in folders, and their names.

    The middle is cut out and resized, grey where the network takes one channel. Raises UserError for what is not there or
    is no picture.
    """
    files = [file for path in paths for file in _files(Path(path))]
    # The embedded digits fill their canvas; pictures of a user are then shown whole.
    share = 1.0 if config.name == "digits" else config.images.crop
    images = []
    for file in files:
        try:
            picture = decode_image(file.read_bytes())
        except (BadPicture, OSError) as error:
            raise UserError(f"{file} cannot be read as a picture ({error})") from error
        if source.channels == 1:
            picture = picture.convert("L").convert("RGB")
        pixels = crop_image(
            picture, source.image_size, crops.evaluation(picture.height, picture.width, share)
        )
        images.append(pixels[:, :, : source.channels] / np.float32(255))
    scaled = (np.stack(images) - np.float32(source.mean)) / np.float32(source.std)
    return scaled.astype(np.float32), [file.name for file in files]


def _files(path: Path) -> list[Path]:
    if not path.exists():
        raise UserError(f"{path} does not exist; give pictures or folders of them")
    if not path.is_dir():
        return [path]
    found = sorted(file for file in path.iterdir() if file.suffix.lower() in _ENDINGS)
    if not found:
        raise UserError(f"{path} holds no picture ({', '.join(sorted(_ENDINGS))})")
    return found
