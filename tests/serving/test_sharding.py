"""Over a mesh: the same logits, and no collective in the program; in a process with four CPU devices."""

import os
import subprocess
import sys
from pathlib import Path

from quick_compile import xla_flags

SCRIPT = """
import re
import jax, numpy as np
from jax.sharding import Mesh
from serving.test_model import IMAGES, make
from prance_jax.core.errors import UserError
from prance_jax.serving.model import _serve
from prance_jax.serving.sharded import sharded_program

model, mesh = make(cost_weights=(0.01, 0.5)), Mesh(jax.devices(), ("data",))
images = np.asarray(IMAGES)[:8]
budgets = np.linspace(0.3, 0.9, 8).astype(np.float32)
split, alone = model.shard(mesh)(images, budgets), model(images, budgets)
np.testing.assert_allclose(split, alone, rtol=0, atol=1e-5 * np.abs(alone).max())
program = sharded_program(_serve, mesh, "data").lower(model, images, budgets).compile().as_text()
print("collectives:", re.findall("all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter", program))
print("devices:", len(split.sharding.device_set))
try:
    model.shard(mesh)(images[:6], 0.5)
except UserError as error:
    print(error)
"""


def test_a_mesh_gives_the_same_without_traffic():
    tests = Path(__file__).parents[1]
    environment = {
        **os.environ,
        "XLA_FLAGS": xla_flags(devices=4),
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": f"{tests.parent}:{tests}",
    }
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "collectives: []",
        "devices: 4",
        "a batch of 6 does not divide by 4 devices; pad it",
    ]
