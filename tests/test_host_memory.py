"""Memory that a process keeps. Counted by the kernel: pages that it had to map while a compiled program ran again and again."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from prance_jax.host_memory import on_cpu

SCRIPT = """
import resource, sys
from prance_jax.host_memory import keep_freed_memory
kept = keep_freed_memory() if sys.argv[1] == "keep" else False
import jax, jax.numpy as jnp

run = jax.jit(lambda x: ((y := jnp.outer(x, x)) @ y).sum())  # blocks of 16 MiB
x = jnp.arange(2048.0)
for _ in range(4):
    run(x).block_until_ready()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    run(x).block_until_ready()
print(kept, (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / 20)
"""


def mapped(what: str) -> tuple[bool, float]:
    """Whether freed memory is kept, and pages mapped in one run of the program; its two blocks are 8,192 of them."""
    # As on anyone's machine: another allocator or setting of the tester's would hide the difference.
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("MALLOC_") and name not in ("LD_PRELOAD", "GLIBC_TUNABLES")
    }
    environment |= {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, what], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    kept, pages = done.stdout.split()
    return kept == "True", float(pages)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
def test_a_program_that_runs_again_maps_nothing_anew():
    kept, pages = mapped("keep")
    if not kept:
        pytest.skip("the C library is not glibc")
    _, otherwise = mapped("as it is")
    assert pages < 16 and otherwise > 800


@pytest.mark.parametrize("named, answer", [("cpu", True), ("cuda,cpu", False), ("tpu", False)])
def test_what_computes_is_what_jax_was_told(named, answer, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", named)
    assert on_cpu() is answer


def test_an_accelerators_plugin_computes(monkeypatch):
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    monkeypatch.setattr("prance_jax.host_memory.find_spec", lambda name: None)
    assert on_cpu()
    monkeypatch.setattr(
        "prance_jax.host_memory.find_spec", lambda name: object() if name == "libtpu" else None
    )
    assert not on_cpu()
