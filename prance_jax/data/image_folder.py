"""The data source of a folder or zip of pictures: decoded into memory once, or while training goes on."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Literal

import numpy as np

from prance_jax.data import crops
from prance_jax.data.arrays import Arrays, Scale, from_arrays
from prance_jax.data.augment import AugmentConfig
from prance_jax.data.folder import Files, empty_classes, hold_out, open_split
from prance_jax.data.pictures import cut, decode, decode_all, listed
from prance_jax.data.stream import Stream
from prance_jax.errors import UserError

_log = logging.getLogger(__name__)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class FolderConfig:
    """Pictures on disk, see `data.folder.open_split` for the layout.

    path: folder or zip. train, validation, test: names of the splits in it; without `validation` a share of every class
      of the training pictures, `validation_share`, is held out, the same at every call.
    in_memory: whether all pictures are decoded at the start and kept on the device, right for small sets; else they are
      read as they are needed, and random crops are taken from the whole picture.
    image_size: side in pixels. crop: share of the shorter side that is kept of a picture, in the middle.
    mean, std: by channel, of values in [0, 1]. on_bad_image: whether a picture that cannot be read, or a class without
      one, is an error or is left out with a warning that counts them. limit: pictures of each split at most, evenly over
      the sorted names; for trying things out.
    """

    path: str = ""
    train: str = "train"
    validation: str | None = None
    test: str = "test"
    validation_share: float = 0.1
    in_memory: bool = True
    image_size: int = 224
    crop: float = 0.875
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    on_bad_image: Literal["error", "skip"] = "error"
    limit: int | None = None

    def __post_init__(self):
        if not (0 < self.crop <= 1 and 0 < self.validation_share < 1 and self.image_size > 0):
            raise UserError(
                "data.folder: crop in (0, 1], validation_share in (0, 1) and image_size above 0 are needed, not "
                f"{self.crop}, {self.validation_share}, {self.image_size}"
            )


def load_folder_source(config: FolderConfig, augment: AugmentConfig = AugmentConfig()) -> Arrays | Stream:
    """A source of the folder's pictures, in memory or streamed.

    Raises UserError for a split or class that is missing, and for pictures that cannot be read unless they are to be
    skipped; of a stream, when it comes to them.
    """
    if not config.path:
        raise UserError("data.folder.path is empty; give the folder or zip that holds the pictures")
    train = open_split(config.path, config.train)
    if config.validation is None:
        train, validation = hold_out(train, config.validation_share)
    else:
        validation = open_split(config.path, config.validation, train.classes)
    test = open_split(config.path, config.test, train.classes)
    if not config.in_memory:
        fixed = {
            name: (_some(files, config), _some(files, config).labels)
            for name, files in (("validation", validation), ("test", test))
        }
        return Stream(
            _some(train, config),
            fixed,
            config.image_size,
            config.crop,
            Scale(config.mean, config.std),
            augment,
            config.on_bad_image,
        )
    arrays = {
        name: _decoded(files, config)
        for name, files in (("train", train), ("validation", validation), ("test", test))
    }
    return from_arrays(
        arrays.pop("train"),
        num_classes=len(train.classes),
        classes=train.classes,
        mean=config.mean,
        std=config.std,
        augment=augment,
        **arrays,
    )


def square(data: bytes, side: int, share: float) -> np.ndarray:
    """A file's picture, its central square resized: uint8 [side, side, 3]. Raises BadPicture."""
    image = decode(data)
    return cut(image, side, crops.evaluation(image.height, image.width, share))


def _some(files: Files, config: FolderConfig) -> Files:
    if config.limit is None or config.limit >= len(files):
        return files
    return files.subset(np.linspace(0, len(files) - 1, config.limit).astype(int))


def _decoded(files: Files, config: FolderConfig) -> tuple[np.ndarray, np.ndarray]:
    files = _some(files, config)
    one = lambda index: square(files.bytes(index), config.image_size, config.crop)
    pixels, problems = decode_all(len(files.names), one, config.image_size)
    lines = [f"{files.names[index]} ({reason})" for index, reason in problems.items()]
    lines += [f"class {name} has no picture" for name in empty_classes(files)]
    if lines and config.on_bad_image == "error":
        raise UserError(
            f"{files.where}: {len(lines)} that cannot be used: {listed(lines)}; mend or remove them, or set "
            "data.folder.on_bad_image to 'skip'"
        )
    if lines:
        _log.warning("%s: left out %d of %d: %s", files.where, len(lines), len(files.names), listed(lines))
    good = np.ones(len(files.names), bool)
    good[list(problems)] = False
    if not good.any():
        raise UserError(f"{files.where}: not one picture can be read: {listed(lines)}")
    return pixels[good], files.labels[good]
