"""The data source of a folder or zip of pictures."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from prance_jax.core.errors import UserError
from prance_jax.data.arrays import Arrays
from prance_jax.data.augment import AugmentConfig
from prance_jax.data.images.folder import Files, hold_out, open_split
from prance_jax.data.images.image_source import ImagesConfig, image_source
from prance_jax.data.images.stream import Stream


@dataclass(frozen=True)
class FolderConfig:
    """Pictures on disk, see `data.folder.open_split` for the layout.

    path: folder or zip. train, validation, test: names of the splits in it; without `validation` a share of every class
      of the training pictures, `validation_share`, is held out, the same at every call.
    limit: pictures of each split at most, evenly over the sorted names; for trying things out.
    """

    path: str = ""
    train: str = "train"
    validation: str | None = None
    test: str = "test"
    validation_share: float = 0.1
    limit: int | None = None

    def __post_init__(self):
        if not 0 < self.validation_share < 1:
            raise UserError(f"data.folder.validation_share is {self.validation_share}; it must be in (0, 1)")


def load_folder_source(
    config: FolderConfig, images: ImagesConfig = ImagesConfig(), augment: AugmentConfig = AugmentConfig()
) -> Arrays | Stream:
    """A source of the folder's pictures.

    Raises UserError for a split or class that is missing, and for pictures as `image_source` does.
    """
    if not config.path:
        raise UserError("data.folder.path is empty; give the folder or zip that holds the pictures")
    train = open_split(config.path, config.train)
    if config.validation is None:
        train, validation = hold_out(train, config.validation_share)
    else:
        validation = open_split(config.path, config.validation, train.classes)
    test = open_split(config.path, config.test, train.classes)
    sets = {"train": train, "validation": validation, "test": test}
    return image_source(images, augment, {name: _some(files, config.limit) for name, files in sets.items()})


def _some(files: Files, limit: int | None) -> Files:
    if limit is None or limit >= len(files):
        return files
    return files.subset(np.linspace(0, len(files) - 1, limit).astype(int))
