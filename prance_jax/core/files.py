"""Atomic text files, and clear errors when a disk is full."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prance_jax.core.errors import UserError
from prance_jax.core.sharding import is_main_process


def write_atomic(path: str | Path, text: str) -> None:
    """Writes a text file so that a crash leaves either the old file or the new one, never a part.

    Hosts of one run share the folder; only the main process writes.

    Args:
      path: file to write or replace.
      text: its new content, written as UTF-8.

    Raises:
      UserError: the disk is full; the old file is intact.
    """
    if not is_main_process():
        return
    path = Path(path)
    partial_file = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with disk_errors(path):
            with open(partial_file, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial_file, path)
    finally:
        partial_file.unlink(missing_ok=True)


@contextmanager
def disk_errors(target: object) -> Iterator[None]:
    """Turns a full disk or quota, however a library wraps that error, into a clear `UserError`.

    Args:
      target: what is written, for the message.

    Raises:
      UserError: the disk is full. Other exceptions pass unchanged.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if _disk_is_full(error):
            raise UserError(
                f"the disk is full: could not write {target}; the last checkpoint is intact, so make room "
                "and run the same command to continue"
            ) from error
        raise


def _disk_is_full(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        # Array writers report it as text, without an errno.
        if any(message in str(error) for message in ("No space left on device", "Disk quota exceeded")):
            return True
        error = error.__cause__ or error.__context__
    return False
