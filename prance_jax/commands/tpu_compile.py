"""The command `compile`: does it fit a TPU pod?"""

from __future__ import annotations

import argparse

from prance_jax.commands.common import Command
from prance_jax.core.errors import UserError


def arguments(command: Command) -> None:
    """Adds `compile`."""
    sub = command(
        "compile",
        compile_for,
        "does it fit a TPU pod? asks the TPU compiler, needs no TPU",
        workdir=False,
    )
    sub.add_argument("--topology", required=True, help="say v5e:2x4, v5e:16x16, v4:2x2x1 or v6e:2x4")
    sub.add_argument("--stage", choices=("all", "meta", "selector", "finetune"), default="all")


def compile_for(options: argparse.Namespace) -> int:
    """Compiles every stage's step for a TPU topology and prints whether it fits."""
    from prance_jax.benchmarks.profiles.tpu_compile import STAGES, compile_stages
    from prance_jax.config import io
    from prance_jax.config.experiment import Config

    if options.config is None:
        raise UserError("compile needs a --config, such as configs/imagenet_small.py")
    config, status = io.load_config(options.config, Config, options.overrides), 0
    print(f"{'stage':9} {'GiB':>7} {'of':>5} {'fits':>5} {'TFLOP':>8}  collectives (bytes on a device)")
    stages = STAGES if options.stage == "all" else (options.stage,)
    for own in compile_stages(config, options.topology, stages):
        moved = ", ".join(f"{count} {kind} {_size(size)}" for kind, (count, size) in own.collectives.items())
        fits = {True: "yes", False: "NO", None: "?"}[own.fits]
        status |= own.fits is False
        print(
            f"{own.stage:9} {own.memory:7.2f} {own.limit or '?':>5} {fits:>5} {own.flops / 1e12:8.3f}  "
            f"{moved or 'none'}; forward: {own.gathers_forward} all-gather; compiled in {own.seconds:.0f} s",
            flush=True,
        )
    return status


def _size(count: int) -> str:
    return f"{count / 2**20:.2f} MiB" if count >= 2**16 else f"{count} B"
