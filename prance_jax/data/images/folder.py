"""A folder or zip of pictures, one sub-folder per class: `train/<class>/<name>.jpg`, `test/<class>/<name>.jpg`."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from prance_jax.core.errors import UserError
from prance_jax.data.arrays import Arrays
from prance_jax.data.augment import AugmentConfig
from prance_jax.data.images.decode import BadPicture
from prance_jax.data.images.image_source import image_source
from prance_jax.data.images.records import ImagesConfig
from prance_jax.data.images.stream import Stream

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".gif", ".tif", ".tiff")


@dataclass(frozen=True)
class Files:
    """The pictures of one split, in the order of their names. where: for messages. read: name -> bytes."""

    where: str
    classes: tuple[str, ...]
    names: tuple[str, ...]
    labels: np.ndarray
    read: Callable[[str], bytes]

    def bytes(self, index: int) -> bytes:
        """Raises BadPicture for a file that cannot be read."""
        try:
            return self.read(self.names[index])
        except (OSError, KeyError, zipfile.BadZipFile) as error:
            raise BadPicture(str(error)) from error

    def __len__(self) -> int:
        return len(self.names)

    def get(self, index: int) -> tuple[bytes, int]:
        """A picture's bytes and label; raises BadPicture."""
        return self.bytes(index), int(self.labels[index])

    def name(self, index: int) -> str:
        return self.names[index]

    def subset(self, index: np.ndarray) -> Files:
        names = tuple(self.names[number] for number in index)
        return Files(self.where, self.classes, names, self.labels[index], self.read)


def open_split(path: str | Path, split: str, classes: tuple[str, ...] | None = None) -> Files:
    """One split of a data set: the folder PATH/SPLIT, the zip PATH/SPLIT.zip, or SPLIT/ inside the zip PATH.

    classes: those of the training set, by which labels are counted; by default the split's own, sorted by name.

    Raises UserError when there is no such split, no picture in it, or a class that is not among `classes`.
    """
    path = Path(path).expanduser()
    folder, packed = path / split, path / f"{split}.zip"
    if folder.is_dir():
        where, names = (
            str(folder),
            [own.relative_to(path).as_posix() for own in folder.glob("*/*") if own.is_file()],
        )
        found = [own.name for own in folder.iterdir() if own.is_dir()]
        read = lambda name: (path / name).read_bytes()
    elif packed.is_file() or (path.is_file() and zipfile.is_zipfile(path)):
        source = packed if packed.is_file() else path
        try:
            archive = zipfile.ZipFile(source)
        except (zipfile.BadZipFile, OSError) as error:
            raise UserError(f"{source} cannot be read as a zip: {error}") from error
        where, read = f"{source}:{split}/", archive.read
        inside = [name for name in archive.namelist() if name.startswith(f"{split}/")]
        found = [PurePosixPath(name).parts[1] for name in inside if name.count("/") > 1]
        names = [name for name in inside if name.count("/") == 2 and not name.endswith("/")]
        if not inside:
            raise UserError(f"{source} has no {split}/<class>/ inside; found {_seen(archive.namelist())}")
    else:
        there = sorted(own.name for own in path.iterdir()) if path.is_dir() else "nothing"
        raise UserError(
            f"there is no split {split!r} in {path}: wanted {split}/ or {split}.zip; found {_seen(there)}"
        )
    own = tuple(sorted(set(found)))
    classes = own if classes is None else classes
    if strange := [name for name in own if name not in classes]:
        raise UserError(f"{where} has classes that the training set has not: {_seen(strange)}")
    names = sorted(name for name in names if name.lower().endswith(SUFFIXES))
    if not names:
        raise UserError(
            f"{where} holds no picture; wanted {split}/<class>/<name>.jpg (or {', '.join(SUFFIXES[1:])})"
        )
    number = {name: index for index, name in enumerate(classes)}
    labels = np.array([number[PurePosixPath(name).parts[1]] for name in names], np.int32)
    return Files(where, classes, tuple(names), labels, read)


def hold_out(files: Files, share: float, seed: int = 0) -> tuple[Files, Files]:
    """Two disjoint parts, the second with `share` of every class, at least one picture where a class has two."""
    rng, second = np.random.default_rng(seed), np.zeros(len(files.labels), bool)
    for label in range(len(files.classes)):
        index = rng.permutation(np.flatnonzero(files.labels == label))
        count = min(max(round(share * len(index)), 1), len(index) - 1) if len(index) else 0
        second[index[:count]] = True
    return files.subset(np.flatnonzero(~second)), files.subset(np.flatnonzero(second))


def _seen(names: list[str] | str, most: int = 6) -> str:
    if isinstance(names, str):
        return names
    shown = ", ".join(names[:most]) or "nothing"
    return shown if len(names) <= most else f"{shown}, ... ({len(names)} in all)"


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
