"""Collectives of a compiled program, and stages compiled for a pod if the TPU compiler is installed."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from prance_jax.benchmarks.profiles.tpu_compile import collectives
from prance_jax.data.arrays import ArrayTables
from prance_jax.data.images.records import ImagesConfig
from prance_jax.data.load import DataConfig, placeholder_source

ROOT = Path(__file__).parents[2]
TEXT = """
  %g = f32[8,16]{1,0} all-gather(f32[2,16]{1,0} %a), dimensions={0}
  %r = (bf16[4]{0:T(8,128)}, /*index=1*/f32[]) all-reduce-start(bf16[4]{0} %b, f32[] %c), to_apply=%add
  %d = (bf16[4]{0}, f32[]) all-reduce-done((bf16[4]{0}, f32[]) %r)
  ROOT %p = f32[3]{0:T(256)} collective-permute(f32[3]{0} %x)
  %n = f32[9]{0} add(f32[9] %all-gather.3, f32[9] %y)
"""


def test_collectives_are_counted_once_with_what_they_produce():
    assert collectives(TEXT) == {
        "all-gather": (1, 4 * 8 * 16),
        "all-reduce": (1, 2 * 4 + 4),
        "collective-permute": (1, 12),
    }


def test_a_placeholder_needs_no_data():
    source = placeholder_source(DataConfig(name="folder", images=ImagesConfig(size=48)))
    assert (source.image_size, source.channels, source.num_classes) == (48, 3, 1000)
    streamed = placeholder_source(DataConfig(name="folder", images=ImagesConfig(size=48, in_memory=False)))
    assert (streamed.image_size, streamed.channels, streamed.num_classes) == (48, 3, 1000)
    # A stream's batch is used as it comes, row by row, so no row moves over devices.
    pixels = np.arange(4 * 48 * 48 * 3, dtype=np.uint32).astype(np.uint8).reshape(4, 48, 48, 3)
    images, labels = streamed.sample(ArrayTables(pixels, np.arange(4)), jax.random.key(0), 4)
    np.testing.assert_array_equal(labels, np.arange(4))
    np.testing.assert_allclose(streamed.to_unit(images) * 255, pixels, atol=1e-3)


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu, the TPU compiler")
def test_every_stage_compiles_for_a_pod():
    words = ["--config", "tests/tiny_config.py", "--topology", "v5e:2x4"]
    done = subprocess.run(
        [sys.executable, "-m", "prance_jax", "compile", *words],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )
    assert done.returncode == 0, done.stderr
    header, *lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["meta", "selector", "finetune"]
    assert all(" yes " in line and "forward: 0 all-gather" in line for line in lines)


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu, the TPU compiler")
def test_a_chip_of_two_cores_is_one_device():
    count = "from prance_jax.benchmarks.profiles.tpu_compile import devices_of; "
    count += "devices = devices_of('v4:2x2x2'); "
    count += "print(len({str(device.coords) for device in devices}), len(devices))"
    done = subprocess.run(
        [sys.executable, "-c", count],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )
    assert done.stdout.split() == ["8", "8"], done.stderr


def test_a_topology_that_does_not_exist_is_one_line():
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "prance_jax",
            "compile",
            "--config",
            "tests/tiny_config.py",
            "--topology",
            "v5e:3x5",
        ],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )
    assert done.returncode == 2 and "names look like v5e:2x4" in done.stderr
