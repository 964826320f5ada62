"""Writes that are whole or not there at all."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prance_jax.core.errors import UserError
from prance_jax.core.sharding import is_main_process


def write_atomic(path: str | Path, text: str) -> None:
    """Writes a text file so that a crash at any moment leaves the old file or the new, never half of one.

    Of several hosts, which share the folder, the first one writes.

    Raises:
      UserError: the disk is full; what was there before is intact.
    """
    if not is_main_process():
        return
    path = Path(path)
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with disk_errors(path):
            with open(beside, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


@contextmanager
def disk_errors(what: object) -> Iterator[None]:
    """Turns a full disk (or quota), in whatever exception a library wraps it, into one clear line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if _disk_is_full(error):
            raise UserError(
                f"the disk is full: could not write {what}; the last checkpoint is intact, so make room and "
                "run the same command to continue"
            ) from error
        raise


def _disk_is_full(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        # Array writers report it as text, without an errno.
        if any(words in str(error) for words in ("No space left on device", "Disk quota exceeded")):
            return True
        error = error.__cause__ or error.__context__
    return False
