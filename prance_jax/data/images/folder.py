"""Reads image files from a folder or zip with one sub-folder per class.

A file is `train/<class>/<name>.jpg` or `test/<class>/<name>.jpg`; see `open_split` for zips. Where an
image may have several labels, they stand in `train.csv` and `test.csv`; see `open_csv_split`.
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import numpy as np

from prance_jax.core.errors import UserError
from prance_jax.core.fields import NumImages, Range, check_fields
from prance_jax.data.arrays import Arrays
from prance_jax.data.augment import AugmentConfig
from prance_jax.data.images.image_source import image_source
from prance_jax.data.images.listing import SUFFIXES, check_link, list_folder, list_zip, read_file, shorten
from prance_jax.data.images.records import ImagesConfig
from prance_jax.data.images.stream import Stream


@dataclass(frozen=True)
class FolderConfig:
    """Where image files are; see `open_split` and `open_csv_split` for the layouts.

    Attributes:
      path: local folder or zip.
      train: name of the training split.
      validation: name of the validation split; None holds out a part of the training images, the
        same at every call.
      test: name of the test split.
      validation_share: share of each class that is held out; none where a class has one image.
      limit: largest number of images of a split, evenly over the sorted names; for quick trials.
      labels: 'folders', a folder for each class, or 'csv', a CSV file for each split, where an image may
        have several labels.
    """

    path: str = ""
    train: str = "train"
    validation: str | None = None
    test: str = "test"
    validation_share: Annotated[float, Range(0, 1, above=True, below=True)] = 0.1
    limit: NumImages | None = None
    labels: Literal["folders", "csv"] = "folders"

    def __post_init__(self):
        if "://" in self.path:
            raise UserError(
                f"data.folder.path is {self.path!r}; images are read from local files: mount the bucket "
                "(gcsfuse, s3fs) or copy it, and give that folder"
            )
        check_fields(self, "folder")


@dataclass(frozen=True)
class FileRecords:
    """The image files of one split (`data.images.records.Records`), sorted by name.

    Attributes:
      location: path of the split, for messages.
      classes: class names.
      names: file names, relative to the data set.
      labels: int32 [N], or [N, classes] of zeros and ones.
      read: file name -> bytes; it raises BadImage.
    """

    location: str
    classes: tuple[str, ...]
    names: tuple[str, ...]
    labels: np.ndarray
    read: Callable[[str], bytes]

    def __len__(self) -> int:
        return len(self.names)

    def get(self, index: int) -> tuple[bytes, int | np.ndarray]:
        """Returns the bytes of a file and its label, or int32 [classes].

        Raises:
          BadImage: the file cannot be read.
        """
        label = self.labels[index]
        return self.read(self.names[index]), label if label.ndim else int(label)

    def name(self, index: int) -> str:
        """Returns the name of a file."""
        return self.names[index]

    def subset(self, index: np.ndarray) -> FileRecords:
        """Returns the files with the numbers `index`."""
        return replace(self, names=tuple(self.names[number] for number in index), labels=self.labels[index])


def load_folder_source(
    config: FolderConfig, images: ImagesConfig = ImagesConfig(), augment: AugmentConfig = AugmentConfig()
) -> Arrays | Stream:
    """Makes a data source of the image files of a folder or zip.

    Args:
      config: where the files are.
      images: how they are decoded.
      augment: augmentation of training images.

    Raises:
      UserError: a split is missing, a class folder of the training set has no image, or an image
        cannot be read (see `image_source`).
    """
    if not config.path:
        raise UserError("data.folder.path is empty; give the folder or zip that holds the images")
    open_labelled = open_csv_split if config.labels == "csv" else open_split
    train = open_labelled(config.path, config.train)
    if images.on_bad_image == "error" and config.labels == "folders":
        _check_classes(train)
    if config.validation is None:
        train, validation = hold_out(train, config.validation_share)
    else:
        validation = open_labelled(config.path, config.validation, train.classes)
    test = open_labelled(config.path, config.test, train.classes)
    splits = {"train": train, "validation": validation, "test": test}
    return image_source(
        images, augment, {name: _limit(split, config.limit) for name, split in splits.items()}
    )


def open_split(path: str | Path, split: str, classes: tuple[str, ...] | None = None) -> FileRecords:
    """Opens the split in folder PATH/SPLIT, in zip PATH/SPLIT.zip, or in SPLIT/ of the zip PATH.

    Each folder in it is a class, with the images in that folder and all folders inside. Hidden files
    and folders do not count. A warning counts all other files that are left out.

    Args:
      path: folder or zip of the data set.
      split: name of the split.
      classes: class names of the training set, which define the labels; None uses the names of the
        split's own classes, sorted.

    Raises:
      UserError: there is no such split, no image in it, a class that is not among `classes`, or a
        zip that cannot be read.
    """
    path = Path(path).expanduser()
    for link in (path, path / split, path / f"{split}.zip"):
        check_link(link)
    if (path / split).is_dir():
        listing = list_folder(path, split)
    elif (path / f"{split}.zip").is_file():
        listing = list_zip(path / f"{split}.zip", split)
    elif path.is_file():
        listing = list_zip(path, split)
    else:
        content = shorten(sorted(entry.name for entry in path.iterdir())) if path.is_dir() else "nothing"
        raise UserError(
            f"there is no split {split!r} in {path}: expected {split}/ or {split}.zip; found {content}"
        )
    classes = listing.classes if classes is None else classes
    if unknown := [name for name in listing.classes if name not in classes]:
        raise UserError(f"{listing.location} has classes that the training set has not: {shorten(unknown)}")
    if not listing.names:
        raise UserError(
            f"{listing.location} holds no image; expected {split}/<class>/<name>.jpg "
            f"(or {', '.join(SUFFIXES[1:])})"
        )
    number = {name: index for index, name in enumerate(classes)}
    labels = np.array([number[name.split("/")[1]] for name in listing.names], np.int32)
    return FileRecords(listing.location, classes, listing.names, labels, listing.read)


def open_csv_split(path: str | Path, split: str, classes: tuple[str, ...] | None = None) -> FileRecords:
    """Opens the split whose files and labels are in PATH/SPLIT.csv.

    The header is `file,CLASS,CLASS,...`. Each line has a file name, relative to the folder PATH/SPLIT,
    then 1 for each class that the image has and 0 for the others; it may have several or none.

    Args:
      path: folder of the data set.
      split: name of the split.
      classes: class names of the training set, which the header must repeat; None takes the header's.

    Raises:
      UserError: the file cannot be read, or a line is not as described.
    """
    path = Path(path).expanduser()
    file = path / f"{split}.csv"
    try:
        with open(file, newline="", encoding="utf-8-sig") as stream:
            head, *rows = (row for row in csv.reader(stream) if row)
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(
            f"{file} cannot be read ({error}); expected a header file,CLASS,CLASS,... and a line per image"
        ) from error
    names = tuple(head[1:])
    if not names or len(set(names)) < len(names) or not rows:
        raise UserError(
            f"{file} needs a header file,CLASS,CLASS,... of different classes, and a line per image"
        )
    if classes is not None and names != classes:
        raise UserError(
            f"{file} has the classes {shorten(names)}; expected those of the training set, {shorten(classes)}"
        )
    for number, row in enumerate(rows, 1):
        if len(row) != len(head) or not set(row[1:]) <= {"0", "1"}:
            raise UserError(
                f"{file}: image {number} ({row[0]}) needs 0 or 1 for each of {len(names)} classes, not "
                f"{','.join(row[1:])}"
            )
    labels = np.array([row[1:] for row in rows]).astype(np.int32)
    files = tuple(f"{split}/{row[0]}" for row in rows)
    return FileRecords(str(file), names, files, labels, lambda name: read_file(path / name))


def hold_out(records: FileRecords, share: float, seed: int = 0) -> tuple[FileRecords, FileRecords]:
    """Divides a split into two disjoint parts.

    Args:
      records: the split.
      share: share of every class in the second part; at least one image where a class has two. Images with
        several labels are divided without regard to classes.
      seed: of the choice.

    Returns:
      The first part, the second part.

    Raises:
      UserError: no class has two images.
    """
    rng, in_second = np.random.default_rng(seed), np.zeros(len(records.labels), bool)
    has_several = records.labels.ndim == 2
    strata = np.zeros(len(records), int) if has_several else records.labels
    for stratum in range(1 if has_several else len(records.classes)):
        index = rng.permutation(np.flatnonzero(strata == stratum))
        count = min(max(round(share * len(index)), 1), len(index) - 1) if len(index) else 0
        in_second[index[:count]] = True
    if not in_second.any():
        raise UserError(
            f"{records.location}: no class has two images, so none can be held out for validation; "
            "set data.folder.validation to the name of another split"
        )
    second = records.subset(np.flatnonzero(in_second))
    second = replace(second, location=f"{records.location} (its part held out for validation)")
    return records.subset(np.flatnonzero(~in_second)), second


def _check_classes(records: FileRecords) -> None:
    """Raises UserError where a class folder has no image."""
    counts = np.bincount(records.labels, minlength=len(records.classes))
    if empty := [name for name, count in zip(records.classes, counts) if not count]:
        raise UserError(
            f"{records.location}: no image in {len(empty)} of {len(counts)} class folders: {shorten(empty)}; "
            "remove them, or set data.images.on_bad_image to 'skip'"
        )


def _limit(records: FileRecords, limit: int | None) -> FileRecords:
    if limit is None or limit >= len(records):
        return records
    part = records.subset(np.linspace(0, len(records) - 1, limit).astype(int))
    return replace(part, location=f"{records.location} (limit {limit})")
