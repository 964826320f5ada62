"""What a process does with memory that it has freed, where JAX computes on CPU cores.

XLA's CPU programs ask the C library for their temporary memory at every call and free it afterwards. glibc hands large blocks back to the
kernel, which clears and maps every page again at the next call: of a training step of a small ViT that is half the time.
"""

import ctypes
import os
import sys
from importlib.util import find_spec

# glibc's malloc.h, mallopt(3).
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -2, -4, -8
_ACCELERATORS = "jax_cuda12_plugin", "jax_cuda13_plugin", "jax_rocm60_plugin", "jax_rocm7_plugin", "libtpu"


def keep_freed_memory() -> bool:
    """Keeps freed memory in the process for its next use, instead of giving it back to the kernel at once.

    Acts on the whole process, so a program decides about it and not a library: the commands call it where `on_cpu`. It helps only before
    JAX's first computation, since the threads that compute keep the pool of memory that they began with.

    Returns:
      Whether it was done; False where the C library is not glibc.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    # One pool for all threads: the others are limited to 64 MiB a piece, and larger blocks would be mapped one by one again.
    wanted = ((_M_ARENA_MAX, 1), (_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_TOP_PAD, 64 * 2**20))
    return all([mallopt(option, value) for option, value in wanted])


def on_cpu() -> bool:
    """Whether JAX will compute on CPU cores, as far as it can be told without starting it."""
    named = os.environ.get("JAX_PLATFORMS", "")
    return named.split(",")[0] == "cpu" if named else not any(find_spec(name) for name in _ACCELERATORS)
