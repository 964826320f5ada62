"""Lists the image files of a split in a folder or zip, and reads them."""

from __future__ import annotations

import logging
import lzma
import os
import stat
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from prance_jax.core.errors import UserError
from prance_jax.data.images.decode import BadImage, join_problems

SUFFIXES = (
    *(".jpg", ".jpeg", ".jfif", ".jpe", ".png", ".webp", ".bmp", ".ppm", ".pgm", ".pbm", ".pnm", ".gif"),
    *(".tif", ".tiff", ".avif", ".jp2"),
)
"""Names of image files end in one of these; other files are left out, and a warning counts them."""

_HIDDEN = ("__macosx", "thumbs.db", "desktop.ini", "@eadir")
_MAX_BYTES = 2**30  # of a file; a zip can claim any size
_READ_ERRORS = (OSError, KeyError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Listing:
    """The image files of a split.

    Attributes:
      location: path of the split, for messages.
      classes: names of its class folders, sorted.
      names: file names, relative to the data set, sorted.
      read: file name -> bytes; it raises BadImage.
    """

    location: str
    classes: tuple[str, ...]
    names: tuple[str, ...]
    read: Callable[[str], bytes]


def is_hidden(name: str) -> bool:
    """Returns whether a file or folder belongs to the system or a tool, not to the data."""
    return name.startswith(".") or name.lower() in _HIDDEN


def list_folder(path: Path, split: str) -> Listing:
    """Lists the split in the folder PATH/SPLIT; links are followed.

    Args:
      path: folder of the data set.
      split: name of the split.

    Raises:
      UserError: a folder cannot be listed, or a link in place of a class folder is broken.
    """
    classes, names, others = [], [], []
    for entry in _entries(path / split):
        name = f"{split}/{entry.name}"
        if _is_folder(entry):
            classes.append(entry.name)
            names += _files(entry.path, f"{name}/", (os.path.realpath(path / split),), others)
        elif entry.is_symlink():
            check_link(Path(entry.path))
            others.append(name)
        else:
            others.append(name)
    read = lambda name: read_file(path / name)
    return _listing(str(path / split), split, classes, names, others, read)


def list_zip(path: Path, split: str) -> Listing:
    """Lists the split in the folder SPLIT/ inside a zip.

    Args:
      path: the zip.
      split: name of the split.

    Raises:
      UserError: the zip is damaged or encrypted, or has no such folder.
    """
    try:
        archive = zipfile.ZipFile(path)
    except (*_READ_ERRORS, NotImplementedError) as error:
        raise UserError(
            f"{path} cannot be read as a zip ({_reason(error)}); download or pack it again"
        ) from error
    entries = {info.filename: info for info in archive.infolist()}
    inside = [name for name in entries if name.startswith(f"{split}/")]
    if not inside:
        raise UserError(f"{path} has no {split}/<class>/ inside; found {shorten(list(entries))}")
    if encrypted := sum(entries[name].flag_bits & 1 for name in inside):
        raise UserError(
            f"{path}: {encrypted} files are encrypted; unpack them, or pack them without a password"
        )
    inside = [name for name in inside if not any(map(is_hidden, name.split("/")[1:]))]
    classes = {name.split("/")[1] for name in inside if name.count("/") > 1}
    names = [name for name in inside if not name.endswith("/")]
    read = lambda name: _read_member(archive, entries[name])
    return _listing(f"{path}:{split}/", split, classes, names, [], read)


def check_link(path: Path) -> None:
    """Raises UserError where a path is a link to nothing."""
    if path.is_symlink() and not path.exists():
        raise UserError(f"{path} is a broken link to {os.readlink(path)}; repair or remove it")


def shorten(names: list[str] | tuple[str, ...], limit: int = 6) -> str:
    """Joins the first few names, for messages.

    Args:
      names: any number of names.
      limit: largest number of names that are listed.
    """
    text = ", ".join(names[:limit]) or "nothing"
    return text if len(names) <= limit else f"{text}, ... ({len(names)} in all)"


def _listing(location, split: str, classes, names, others, read) -> Listing:
    """Divides files into images and others, and warns of the others."""
    is_image = lambda name: name.count("/") > 1 and name.lower().endswith(SUFFIXES)
    others = sorted([*others, *(name for name in names if not is_image(name))])
    if others:
        text = "%s: %d files are not used (no image by their name, or in no class folder): %s"
        _log.warning(text, location, len(others), join_problems([name[len(split) + 1 :] for name in others]))
    images = sorted(filter(is_image, names))
    return Listing(location, tuple(sorted(classes)), tuple(images), read)


def _entries(folder: str | Path) -> list[os.DirEntry]:
    """The entries of a folder that are not hidden."""
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if not is_hidden(entry.name)]
    except OSError as error:
        raise UserError(f"{folder} cannot be listed: {_reason(error)}") from error


def _is_folder(entry: os.DirEntry) -> bool:
    return os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()


def _files(folder: str, prefix: str, parents: tuple[str, ...], others: list[str]) -> Iterator[str]:
    """Yields the names of the files in a folder and the folders in it.

    Links to folders above and what is not a file, such as a pipe, are added to `others`.
    """
    parents = (*parents, os.path.realpath(folder))
    for entry in _entries(folder):
        name = prefix + entry.name
        if _is_folder(entry):
            target = os.path.realpath(entry.path)
            if any(f"{parent}/".startswith(f"{target}/") for parent in parents):
                others.append(name)
            else:
                yield from _files(entry.path, f"{name}/", parents, others)
        elif entry.is_symlink() and not os.path.exists(entry.path):
            yield name  # a broken link is a bad image
        elif os.path.isfile(entry.path) if entry.is_symlink() else entry.is_file():
            yield name
        else:
            others.append(name)


def read_file(path: Path) -> bytes:
    """Returns the bytes of a file; raises BadImage where it cannot be read."""
    try:
        with open(path, "rb") as file:
            _check_size(os.fstat(file.fileno()).st_size)
            return file.read()
    except OSError as error:
        if path.is_symlink() and not path.exists():
            raise BadImage(f"a broken link to {os.readlink(path)}") from error
        raise BadImage(_reason(error)) from error


def _read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    _check_size(info.file_size)
    try:
        data = archive.read(info)
    except (*_READ_ERRORS, lzma.LZMAError) as error:
        raise BadImage(f"damaged in the zip: {_reason(error)}") from error
    if stat.S_ISLNK(info.external_attr >> 16):
        raise BadImage(f"a link in the zip to {data[:100].decode(errors='replace')}")
    return data


def _check_size(size: int) -> None:
    if size > _MAX_BYTES:
        raise BadImage(f"{size} bytes; at most {_MAX_BYTES} are read")


def _reason(error: Exception) -> str:
    """The reason of an error, without the path."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
