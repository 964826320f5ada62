"""Small networks shared by all tests."""

import gc
import os
from pathlib import Path

import hypothesis
import jax
import numpy as np
import pytest
import quick_compile
from small import make_spec, noisy_params

quick_compile.set_up()

hypothesis.settings.register_profile("house", database=None, deadline=None, max_examples=30, derandomize=True)
hypothesis.settings.load_profile("house")


@pytest.fixture(scope="module", autouse=True)
def few_memory_mappings():
    """Compiled programs take memory mappings, of which Linux gives a process 65,530; beyond them compilation crashes."""
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and len(maps.read_bytes().splitlines()) > 25_000:
        jax.clear_caches()
        gc.collect()


@pytest.fixture(scope="session")
def params():
    """Parameters of the small network, the same for every mode."""
    return noisy_params(make_spec())


@pytest.fixture(scope="session")
def images():
    return jax.random.normal(jax.random.key(2), (6, 16, 16, 3))


@pytest.fixture(scope="session")
def golden():
    """Loads a golden file by token mode; skips where the files are not at hand."""
    root = Path(os.environ.get("PRANCE_GOLDEN", Path(__file__).resolve().parents[2] / "shared" / "golden"))

    def load(mode: str) -> dict[str, np.ndarray]:
        file = root / f"prance_{mode}.npz"
        if not file.exists():
            pytest.skip(f"golden file {file.name} is not at hand (set PRANCE_GOLDEN to its folder)")
        with np.load(file) as arrays:
            return dict(arrays)

    return load
