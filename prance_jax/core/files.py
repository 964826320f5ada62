"""Files: atomic writing, JSON files that can be made anew, and one line for what a disk refuses."""

import contextlib
import errno
import json
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from prance_jax.core.errors import UserError, WriteError
from prance_jax.core.sharding import is_main_process

_log = logging.getLogger(__name__)
_FULL = (errno.ENOSPC, errno.EDQUOT)
# Refusals that array writers report as text, without an errno.
_IN_TEXT = (*_FULL, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ENOENT, errno.ENOTDIR)
Value = TypeVar("Value")


def local_path(path: str | Path) -> Path:
    """Returns a path of this machine's file systems.

    Raises:
      UserError: it is an address such as gs://bucket/run, or holds a null byte.
    """
    # `Path` makes one stroke of two.
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", str(path)):
        raise UserError(
            f"{path} is not a local path; mount the bucket (gcsfuse, s3fs) and give the mounted folder"
        )
    if "\0" in str(path):
        raise UserError(f"path {str(path)!r} holds a null byte; leave it out")
    return Path(path)


def check_writable(path: str | Path) -> None:
    """Checks that a file can be created beside a path, and leaves nothing; for a start of long work.

    Raises:
      UserError: `local_path` refuses the path.
      WriteError: its folder cannot be created or written.
    """
    path = local_path(path)
    partial, created = _partial_of(path), []
    with disk_errors(path):
        try:
            created = make_folder(path.parent)
            partial.touch()
            partial.unlink()
        finally:
            remove_empty(created)


def make_folder(path: Path) -> list[Path]:
    """Creates a folder and its parents; where that fails, none stays.

    Returns:
      The folders that were created, the innermost first.
    """
    created = [folder for folder in (path, *path.parents) if not os.path.lexists(folder)]
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR)) from error
    except OSError:
        remove_empty(created)
        raise
    return created


def remove_empty(folders: Iterable[Path]) -> None:
    """Removes folders that are empty; the first other one and those after it stay."""
    with contextlib.suppress(OSError):
        for folder in folders:
            if os.path.lexists(folder):
                folder.rmdir()


@contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Gives a partial file that becomes `path` at the end; an error leaves the old file and nothing else.

    Args:
      path: file to write or replace; its folder is created.

    Yields:
      Path of the partial file, in the same folder.

    Raises:
      UserError: `local_path` refuses the path.
      WriteError: the file cannot be written.
    """
    path, created = local_path(path), []
    partial = _partial_of(path)
    try:
        with disk_errors(path):
            created = make_folder(path.parent)
            yield partial
            with open(partial, "rb") as file:
                os.fsync(file.fileno())
            os.replace(partial, path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink()
        remove_empty(created)
        raise


def write_atomic(path: str | Path, text: str) -> None:
    """Writes a text file so that a crash leaves either the old file or the new one, never a part.

    Hosts of one run share the folder; only the main process writes.

    Args:
      path: file to write or replace; its folder is created.
      text: its new content, written as UTF-8.

    Raises:
      WriteError: the file cannot be written; the old file is intact.
    """
    if not is_main_process():
        return
    with atomic_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


def try_write(path: str | Path, text: str) -> bool:
    """Writes a file that can be made anew; if it cannot be written, one warning gives the reason.

    Args:
      path: file to write or replace.
      text: its new content.

    Returns:
      Whether it was written.
    """
    try:
        write_atomic(path, text)
    except WriteError as error:
        _log.warning("%s", error)
        return False
    return True


def read_json(path: str | Path, parse: Callable[[Any], Value]) -> Value | None:
    """Reads a JSON file that can be made anew.

    Args:
      path: the file.
      parse: (JSON value) -> value; raises any exception if the value does not fit.

    Returns:
      The value; None if the file is absent, or damaged, which one warning reports.
    """
    try:
        return parse(json.loads(Path(path).read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except Exception as error:  # damage raises whatever the parser meets first
        reason = (str(error) or type(error).__name__).splitlines()[0]
        _log.warning("%s is damaged (%s); it is made anew", path, reason)
        return None


def remove_partial_files(folder: Path) -> None:
    """Removes the partial files that dead processes left in a folder.

    Those of other running processes of this machine stay.
    """
    for partial in folder.glob(".*.*.part"):
        process = partial.name.split(".")[-2]
        if process.isdigit() and (int(process) == os.getpid() or not _is_running(int(process))):
            with contextlib.suppress(OSError):
                partial.unlink()


@contextmanager
def disk_errors(target: object) -> Iterator[None]:
    """Turns what a disk refuses, however a library wraps that error, into one clear line.

    Args:
      target: what is written, for the message.

    Raises:
      WriteError: the disk is full, read-only, or refuses the path. Other exceptions pass unchanged.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        code = _code(error)
        if code in _FULL:
            raise WriteError(
                f"the disk is full: could not write {target}; the last checkpoint is intact, so make room "
                "and run the same command to continue"
            ) from error
        if code is not None:
            raise WriteError(
                f"could not write {target}: {os.strerror(code)}; choose another path, or make this one writable"
            ) from error
        raise


def _partial_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.part")


def _code(error: BaseException | None) -> int | None:
    """The errno of an error or of what caused it, by number or by text; None without one."""
    while error is not None:
        if isinstance(error, OSError) and error.errno is not None:
            return error.errno
        for code in _IN_TEXT:
            if os.strerror(code) in str(error):
                return code
        error = error.__cause__ or error.__context__
    return None


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except PermissionError:
        return True
    except OSError:
        return False
    return True
