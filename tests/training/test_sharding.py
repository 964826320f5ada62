"""One result on two processes of two devices, on eight devices with sharded parameters, or on one.

Each run has its own process, since a process keeps the devices that it started with.
"""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from quick_compile import xla_flags

from prance_jax.config import io
from prance_jax.config.experiment import Config
from prance_jax.core.errors import UserError
from prance_jax.core.sharding import MeshConfig, check_batch_sizes, init_distributed, make_mesh
from prance_jax.experiments.experiment import Experiment
from prance_jax.training import tree_leaves
from prance_jax.training.metrics import read_metrics
from prance_jax.training.progress import Progress
from prance_jax.training.workdir import Workdir

TESTS = Path(__file__).parents[1]
CONFIG = TESTS / "tiny_config.py"
# Shards every array that can be sharded: those of the tiny network are all small.
RUN = """
import sys
import prance_jax.core.sharding
prance_jax.core.sharding.SMALLEST = 1
from prance_jax.cli import main
sys.exit(main(sys.argv[1:]))
"""


def start(devices, *words):
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": f"{TESTS.parent}:{TESTS}"}
    environment |= {"XLA_FLAGS": xla_flags(devices)}
    command = [sys.executable, "-c", RUN, *words, "--config", str(CONFIG), "--quiet"]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(env):
    out, errors = env.communicate(timeout=300)
    assert env.returncode == 0, errors
    return out


def trained(workdir, *overrides):
    """Parameters after every stage, read on one device."""
    config = io.load_config(CONFIG, Config, overrides)
    run = Experiment(config, Workdir(workdir), Progress(quiet=True), train=False)
    row = run.prance(0, "prune")
    return {"meta": run.meta(0), "policy": row.policy_params, "finetuned": row.params}


def test_hosts_and_devices_do_not_matter(tmp_path):
    """Two processes of two devices, continued by one of four; one of eight with sharded parameters."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    words = "train", "--workdir", str(tmp_path / "data")
    both = [
        start(2, *words, "--stage", "meta", "--distributed", f"{address},2,{index}") for index in range(2)
    ]
    divided = "train", "--workdir", str(tmp_path / "fsdp"), "--config.mesh.fsdp=2"
    for env in both:
        finish(env)
    finish(start(4, *words, "--stage", "finetune"))
    assert "stage finetune is done" in finish(start(8, *divided, "--stage", "finetune"))
    expected, actual = trained(tmp_path / "data"), trained(tmp_path / "fsdp", "--config.mesh.fsdp=1")
    for stage, tree in expected.items():
        leaves, others = tree_leaves.leaves_by_path(actual[stage]), tree_leaves.leaves_by_path(tree)
        assert leaves.keys() == others.keys()
        for path, leaf in leaves.items():
            leaf, other = np.asarray(leaf), np.asarray(others[path])
            if path.endswith("qkv/bias"):
                # Softmax cancels the bias of the keys: its gradient is rounding noise, which Adam scales up.
                third = len(leaf) // 3
                leaf, other = (np.delete(bias, np.s_[third : 2 * third]) for bias in (leaf, other))
            # The selector reads the keys.
            tolerance = 1e-4 if stage == "policy" else 1e-5
            np.testing.assert_allclose(leaf, other, rtol=1e-4, atol=tolerance, err_msg=f"{stage} {path}")
    losses = [
        [line["loss"] for line in read_metrics(tmp_path / name / "metrics.jsonl") if "loss" in line]
        for name in ("data", "fsdp")
    ]
    assert len(losses[0]) == 4  # two stages, each validated at step 4 and at its end
    np.testing.assert_allclose(*losses, rtol=1e-4)


def test_meshes_that_cannot_be_are_refused():
    with pytest.raises(UserError, match="data 64 x fsdp 2 is 128 devices; there are 1"):
        make_mesh(MeshConfig(data=64, fsdp=2))
    with pytest.raises(UserError, match="mesh: fsdp = 0 is out of range; it should be from 1"):
        MeshConfig(fsdp=0)
    assert make_mesh(MeshConfig()) is None
    with pytest.raises(UserError, match="say 'auto', or ADDRESS,PROCESSES,INDEX"):
        init_distributed("127.0.0.1:1234,2,2")


def test_a_batch_that_devices_cannot_share_is_refused():
    class Eight:
        size = 8

    check_batch_sizes(Eight(), **{"meta.batch": 64})
    with pytest.raises(UserError, match="meta.batch is 50; on 8 devices it must be a multiple of 8, say 56"):
        check_batch_sizes(Eight(), **{"meta.batch": 50})
