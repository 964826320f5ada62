"""Reads image files from a folder or zip with one sub-folder per class.

A file is `train/<class>/<name>.jpg` or `test/<class>/<name>.jpg`; see `open_split` for zips.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from prance_jax.core.errors import UserError
from prance_jax.data.arrays import Arrays
from prance_jax.data.augment import AugmentConfig
from prance_jax.data.images.decode import BadImage
from prance_jax.data.images.image_source import image_source
from prance_jax.data.images.records import ImagesConfig
from prance_jax.data.images.stream import Stream

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".gif", ".tif", ".tiff")
"""Names of image files end in one of these; other files are ignored."""


@dataclass(frozen=True)
class FolderConfig:
    """Where image files are; see `open_split` for the layout.

    Attributes:
      path: folder or zip.
      train: name of the training split.
      validation: name of the validation split; None holds out a part of the training images, the
        same at every call.
      test: name of the test split.
      validation_share: share of each class that is held out.
      limit: largest number of images of a split, evenly over the sorted names; for quick trials.
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


@dataclass(frozen=True)
class FileRecords:
    """The image files of one split (`data.images.records.Records`), sorted by name.

    Attributes:
      location: path of the split, for messages.
      classes: class names.
      names: file names, relative to the data set.
      labels: int32 [N].
      read: file name -> bytes.
    """

    location: str
    classes: tuple[str, ...]
    names: tuple[str, ...]
    labels: np.ndarray
    read: Callable[[str], bytes]

    def __len__(self) -> int:
        return len(self.names)

    def get(self, index: int) -> tuple[bytes, int]:
        """Returns the bytes of a file and its label.

        Raises:
          BadImage: the file cannot be read.
        """
        try:
            data = self.read(self.names[index])
        except (OSError, KeyError, zipfile.BadZipFile) as error:
            raise BadImage(str(error)) from error
        return data, int(self.labels[index])

    def name(self, index: int) -> str:
        """Returns the name of a file."""
        return self.names[index]

    def subset(self, index: np.ndarray) -> FileRecords:
        """Returns the files with the numbers `index`."""
        names = tuple(self.names[number] for number in index)
        return FileRecords(self.location, self.classes, names, self.labels[index], self.read)


def load_folder_source(
    config: FolderConfig, images: ImagesConfig = ImagesConfig(), augment: AugmentConfig = AugmentConfig()
) -> Arrays | Stream:
    """Makes a data source of the image files of a folder or zip.

    Args:
      config: where the files are.
      images: how they are decoded.
      augment: augmentation of training images.

    Raises:
      UserError: a split or class is missing, or an image cannot be read (see `image_source`).
    """
    if not config.path:
        raise UserError("data.folder.path is empty; give the folder or zip that holds the images")
    train = open_split(config.path, config.train)
    if config.validation is None:
        train, validation = hold_out(train, config.validation_share)
    else:
        validation = open_split(config.path, config.validation, train.classes)
    test = open_split(config.path, config.test, train.classes)
    splits = {"train": train, "validation": validation, "test": test}
    return image_source(
        images, augment, {name: _limit(split, config.limit) for name, split in splits.items()}
    )


def open_split(path: str | Path, split: str, classes: tuple[str, ...] | None = None) -> FileRecords:
    """Opens the split in folder PATH/SPLIT, in zip PATH/SPLIT.zip, or in SPLIT/ of the zip PATH.

    Args:
      path: folder or zip of the data set.
      split: name of the split.
      classes: class names of the training set, which define the labels; None uses the names of the
        split's own classes, sorted.

    Raises:
      UserError: there is no such split, no image in it, or a class that is not among `classes`.
    """
    path = Path(path).expanduser()
    if (path / split).is_dir():
        location, class_names, names, read = _list_folder(path, split)
    elif (path / f"{split}.zip").is_file():
        location, class_names, names, read = _list_zip(path / f"{split}.zip", split)
    elif path.is_file() and zipfile.is_zipfile(path):
        location, class_names, names, read = _list_zip(path, split)
    else:
        content = _shorten(sorted(entry.name for entry in path.iterdir())) if path.is_dir() else "nothing"
        raise UserError(
            f"there is no split {split!r} in {path}: expected {split}/ or {split}.zip; found {content}"
        )
    class_names = tuple(sorted(set(class_names)))
    classes = class_names if classes is None else classes
    if unknown := [name for name in class_names if name not in classes]:
        raise UserError(f"{location} has classes that the training set has not: {_shorten(unknown)}")
    names = sorted(name for name in names if name.lower().endswith(SUFFIXES))
    if not names:
        raise UserError(
            f"{location} holds no image; expected {split}/<class>/<name>.jpg (or {', '.join(SUFFIXES[1:])})"
        )
    number = {name: index for index, name in enumerate(classes)}
    labels = np.array([number[PurePosixPath(name).parts[1]] for name in names], np.int32)
    return FileRecords(location, classes, tuple(names), labels, read)


def hold_out(records: FileRecords, share: float, seed: int = 0) -> tuple[FileRecords, FileRecords]:
    """Divides a split into two disjoint parts.

    Args:
      records: the split.
      share: share of every class in the second part; at least one image where a class has two.
      seed: of the choice.

    Returns:
      The first part, the second part.
    """
    rng, in_second = np.random.default_rng(seed), np.zeros(len(records.labels), bool)
    for label in range(len(records.classes)):
        index = rng.permutation(np.flatnonzero(records.labels == label))
        count = min(max(round(share * len(index)), 1), len(index) - 1) if len(index) else 0
        in_second[index[:count]] = True
    return records.subset(np.flatnonzero(~in_second)), records.subset(np.flatnonzero(in_second))


_Listing = tuple[str, list[str], list[str], Callable[[str], bytes]]
"""Of one split: its path for messages, class names, file names, and name -> bytes."""


def _list_folder(path: Path, split: str) -> _Listing:
    folder = path / split
    class_names = [entry.name for entry in folder.iterdir() if entry.is_dir()]
    names = [file.relative_to(path).as_posix() for file in folder.glob("*/*") if file.is_file()]
    return str(folder), class_names, names, lambda name: (path / name).read_bytes()


def _list_zip(path: Path, split: str) -> _Listing:
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError) as error:
        raise UserError(f"{path} cannot be read as a zip: {error}") from error
    entries = [name for name in archive.namelist() if name.startswith(f"{split}/")]
    if not entries:
        raise UserError(f"{path} has no {split}/<class>/ inside; found {_shorten(archive.namelist())}")
    class_names = [PurePosixPath(name).parts[1] for name in entries if name.count("/") > 1]
    names = [name for name in entries if name.count("/") == 2 and not name.endswith("/")]
    return f"{path}:{split}/", class_names, names, archive.read


def _limit(records: FileRecords, limit: int | None) -> FileRecords:
    if limit is None or limit >= len(records):
        return records
    return records.subset(np.linspace(0, len(records) - 1, limit).astype(int))


def _shorten(names: list[str], limit: int = 6) -> str:
    """Joins the first few names, for messages."""
    text = ", ".join(names[:limit]) or "nothing"
    return text if len(names) <= limit else f"{text}, ... ({len(names)} in all)"
