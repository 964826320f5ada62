"""What the commands share: options, and how they open a config, a workdir and an experiment."""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING

from prance_jax.core.errors import UserError

if TYPE_CHECKING:
    from prance_jax.config.experiment import Config
    from prance_jax.experiments.experiment import Experiment
    from prance_jax.training.workdir import Workdir


AddCommand = Callable[..., argparse.ArgumentParser]
"""(name, run, summary, description, example, config=True, workdir=True) -> parser of the new command.

It has --config, --quiet and --workdir by default; see `prance_jax.cli.make_parser`."""


def add_distributed(command: argparse.ArgumentParser) -> None:
    """Adds --distributed, for `prance_jax.core.sharding.init_distributed`."""
    command.add_argument(
        "--distributed",
        metavar="auto|ADDRESS,PROCESSES,INDEX",
        help="this is one of several processes: 'auto' on TPU pods and under SLURM, otherwise such as "
        "10.0.0.1:1234,2,0",
    )


def renamed_choice(option: str, new_names: dict[str, str]) -> Callable[[str], str]:
    """Returns the `type` of an option whose choices have new names.

    Args:
      option: the option, for the warning, such as "--measure".
      new_names: old value -> new value; an old value is accepted with a warning.
    """

    def choice(value: str) -> str:
        if value in new_names:
            text = f"{option} {value} is now called {option} {new_names[value]}"
            warnings.warn(text, FutureWarning, stacklevel=2)
        return new_names.get(value, value)

    return choice


def open_config(options: argparse.Namespace) -> Config:
    """Reads the file of --config with all overrides.

    Raises:
      UserError: --config is not given, or the file, a key or a value is wrong.
    """
    from prance_jax.config import io
    from prance_jax.config.experiment import Config

    if options.config is None:
        raise UserError(f"{options.command} needs a --config here, such as configs/digits.py")
    return io.load_config(options.config, Config, options.overrides)


def open_workdir(options: argparse.Namespace, *, train: bool = False) -> tuple[Config, Workdir]:
    """Opens --workdir, with the config of --config or else the one that the workdir was made with.

    Args:
      options: of the command line.
      train: whether the command trains. The workdir is then made if needed, and seeds may be added to it.

    Returns:
      The config and the workdir.

    Raises:
      UserError: --workdir is not given, is not a workdir, or belongs to another configuration.
    """
    import functools

    from prance_jax.config import io
    from prance_jax.config.experiment import Config
    from prance_jax.training.workdir import Workdir

    if options.workdir is None:
        raise UserError(f"{options.command} needs a --workdir here, the folder of a trained run")
    workdir = Workdir(options.workdir)
    if options.config is None:
        return workdir.config(), workdir
    config = open_config(options)
    if train:
        if workdir.claim(io.to_dict(config), options.line, functools.partial(io.complete_config, Config)):
            print(f"continuing in {workdir.path}", file=sys.stderr)
        return config, workdir
    lines = io.differences(config, workdir.config())
    if lines:
        raise UserError(
            f"workdir {workdir.path} belongs to another configuration ({'; '.join(lines)}); "
            "leave --config out"
        )
    return config, workdir


def open_experiment(options: argparse.Namespace, *, train: bool = False) -> Experiment:
    """Opens --workdir as an `Experiment`, with progress on standard error unless --quiet.

    A config with the section `cascade` gives a `CascadeStages` in its place.

    Args:
      options: of the command line.
      train: whether missing stages are trained; otherwise a missing stage is a UserError.
    """
    from prance_jax.core.sharding import is_main_process
    from prance_jax.experiments.experiment import Experiment
    from prance_jax.training.progress import Progress

    config, workdir = open_workdir(options, train=train)
    arguments = config, workdir, Progress(quiet=options.quiet or not is_main_process())
    if config.cascade is None:
        return Experiment(*arguments, train=train)
    from prance_jax.experiments.cascade.stages import CascadeStages

    return CascadeStages(*arguments, train=train)


def run_clock(workdir: Workdir) -> Callable[[], float]:
    """Returns a function that gives the seconds of a workdir in all sessions so far, and stores them."""
    from prance_jax.core.files import write_atomic

    file, start = workdir.path / "seconds.json", time.monotonic()
    before = json.loads(file.read_text()) if file.exists() else 0.0

    def elapsed() -> float:
        seconds = before + time.monotonic() - start
        write_atomic(file, json.dumps(seconds))
        return seconds

    return elapsed
