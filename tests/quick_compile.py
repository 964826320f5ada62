"""Programs of a test run a few times on a few small images: compiling them well, or twice, would take far longer."""

import atexit
import os
import tempfile

import jax
import jaxlib

# XLA stops at a flag that it does not know; these are known to the versions that begin so.
_VERSIONS = "0.10."
_FLAGS = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"


def xla_flags(devices: int | None = None) -> str:
    """XLA_FLAGS of a process, with as many CPU devices as said."""
    flags = _FLAGS if jaxlib.__version__.startswith(_VERSIONS) else ""
    return f"{flags} --xla_force_host_platform_device_count={devices}" if devices else flags


def set_up() -> None:
    """Before the first computation. In the environment too: processes that a test starts compute the same to the last bit."""
    folder = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    if "PYTEST_XDIST_WORKER" not in os.environ:  # workers share the folder of the process that started them
        made = tempfile.TemporaryDirectory(prefix="prance_tests_", ignore_cleanup_errors=True)
        atexit.register(made.cleanup)
        folder = made.name
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {xla_flags()}".strip()
    settings = {
        "jax_disable_most_optimizations": True,
        "jax_compilation_cache_dir": folder,
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    for name, value in settings.items():
        jax.config.update(name, value)
        os.environ[name.upper()] = "1" if value is True else str(value)
