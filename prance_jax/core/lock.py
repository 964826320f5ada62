"""A lock between processes, which the system releases when its holder ends."""

import contextlib
import logging
import os
import socket
import time
from pathlib import Path

_log = logging.getLogger(__name__)


def lock_file(path: Path, stack: contextlib.ExitStack) -> str | None:
    """Locks a file until a stack closes, if no other process has locked it.

    Where files cannot be locked (a file system without locks, a read-only folder, Windows), one
    warning gives the reason.

    Args:
      path: the file; it is created and holds a description of the process that locked it last.
      stack: its end releases the lock; so does the end of the process.

    Returns:
      The process that holds the lock (number, host and start), or None.
    """
    try:
        import fcntl  # not on Windows

        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        file = stack.enter_context(os.fdopen(descriptor, "r+", encoding="utf-8", errors="replace"))
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return file.read().strip() or "another process"
    except (OSError, ImportError) as error:
        reason = getattr(error, "strerror", None) or error
        _log.warning("%s cannot be locked (%s); start no second run on this workdir", path.parent, reason)
        return None
    holder = f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}"
    with contextlib.suppress(OSError):  # a full disk: the lock holds without a description
        file.truncate(0)
        file.write(holder)
        file.flush()
    return None
