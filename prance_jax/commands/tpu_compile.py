"""The command `compile`: checks whether a config fits a TPU topology."""

from __future__ import annotations

import argparse

from prance_jax.commands.common import AddCommand, open_config

_DESCRIPTION = """\
Compiles every stage's training step for a TPU topology, and prints whether it fits the memory of a chip,
its operations and its collectives. The exit status is 1 if a stage does not fit. It asks the TPU
compiler (pip install libtpu) and needs no TPU.

JAX_EXEC_TIME_OPTIMIZATION_EFFORT and JAX_MEMORY_FITTING_EFFORT set the effort of the compiler; at the
lowest, a stage takes 2 to 20 minutes of one core."""


def add_commands(add_command: AddCommand) -> None:
    """Adds `compile`."""
    command = add_command(
        "compile",
        compile_for,
        "check whether every stage fits a TPU topology",
        _DESCRIPTION,
        "--config configs/imagenet_small.py --topology v5e:16x16",
        workdir=False,
    )
    command.add_argument("--topology", required=True, help="such as v5e:2x4, v5e:16x16, v4:2x2x1 or v6e:2x4")
    command.add_argument(
        "--stage",
        choices=("all", "meta", "selector", "finetune"),
        default="all",
        help="the stage to compile; all by default",
    )


def compile_for(options: argparse.Namespace) -> int:
    """Compiles every stage's step for a TPU topology and prints whether it fits; status 1 if not."""
    from prance_jax.benchmarks.profiles.tpu_compile import STAGES, compile_stages

    config, status = open_config(options), 0
    print(f"{'stage':9} {'GiB':>7} {'of':>5} {'fits':>5} {'TFLOP':>8}  collectives (bytes on a device)")
    stages = STAGES if options.stage == "all" else (options.stage,)
    for compiled in compile_stages(config, options.topology, stages):
        collectives = ", ".join(
            f"{count} {kind} {_size(size)}" for kind, (count, size) in compiled.collectives.items()
        )
        fits = {True: "yes", False: "NO", None: "?"}[compiled.fits]
        status |= compiled.fits is False
        print(
            f"{compiled.stage:9} {compiled.memory:7.2f} {compiled.limit or '?':>5} {fits:>5} "
            f"{compiled.flops / 1e12:8.3f}  {collectives or 'none'}; "
            f"forward: {compiled.gathers_forward} all-gather; compiled in {compiled.seconds:.0f} s",
            flush=True,
        )
    return status


def _size(count: int) -> str:
    return f"{count / 2**20:.2f} MiB" if count >= 2**16 else f"{count} B"
