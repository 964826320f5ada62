"""What commands do with --config and --workdir before their own work."""

from __future__ import annotations

import argparse
import json
import time
from typing import Callable

Command = Callable[..., argparse.ArgumentParser]
"""(name, what it runs, help, config, workdir) -> the parser of a new command, by default with --config, --quiet and
--workdir; see `prance_jax.cli`."""


def add_distributed(sub: argparse.ArgumentParser) -> None:
    """Adds --distributed, for `mesh.join`."""
    sub.add_argument(
        "--distributed",
        metavar="auto|ADDRESS,PROCESSES,INDEX",
        help="this is one of several processes: 'auto' on TPU pods and under SLURM, else say 10.0.0.1:1234,2,0",
    )


def open_config(options: argparse.Namespace):
    """The config and its workdir: those of --config, or of the workdir alone."""
    from prance_jax.config import io
    from prance_jax.config.experiment import Config
    from prance_jax.training.workdir import Workdir

    workdir = Workdir(options.workdir)
    if not options.config:
        return workdir.config(), workdir
    config = io.load_config(options.config, Config, options.overrides)
    claim_workdir(workdir, config, options.line)
    return config, workdir


def claim_workdir(workdir, config, line: str) -> bool:
    """Whether the workdir was there before, for the same config; UserError where it is of another."""
    import functools

    from prance_jax.config import io
    from prance_jax.config.experiment import Config

    return workdir.claim(io.to_dict(config), line, functools.partial(io.complete_config, Config))


def open_experiment(options: argparse.Namespace, config, workdir, train: bool):
    """The `Experiment` of a workdir, with progress unless --quiet."""
    from prance_jax.core.sharding import is_main_process
    from prance_jax.experiments.experiment import Experiment
    from prance_jax.training.metrics import Progress

    return Experiment(config, workdir, Progress(quiet=options.quiet or not is_main_process()), train=train)


def run_clock(workdir) -> Callable[[], float]:
    """Seconds of all sessions of a workdir so far, those that were stopped after a seed included."""
    from prance_jax.core.files import write_atomic

    file, start = workdir.path / "seconds.json", time.monotonic()
    before = json.loads(file.read_text()) if file.exists() else 0.0

    def spent() -> float:
        seconds = before + time.monotonic() - start
        write_atomic(file, json.dumps(seconds))
        return seconds

    return spent
