"""What the commands share: options, and how they open a config, a workdir and an experiment."""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from prance_jax.core.errors import UserError, WriteError

if TYPE_CHECKING:
    from prance_jax.config.experiment import Config
    from prance_jax.experiments.experiment import Experiment
    from prance_jax.training.progress import Progress
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
      train: whether the command trains. There need be no workdir yet then; nothing is written here.

    Returns:
      The config and the workdir.

    Raises:
      UserError: --workdir is not given, is not a workdir, or belongs to another configuration.
    """
    from prance_jax.config import io
    from prance_jax.training.workdir import Workdir

    if options.workdir is None:
        raise UserError(f"{options.command} needs a --workdir here, the folder of a trained run")
    workdir = Workdir(options.workdir)
    if options.config is None:
        return workdir.config(), workdir
    config = open_config(options)
    if not train:
        workdir.record()  # it must be one
    workdir.check(io.to_dict(config), _complete)
    return config, workdir


def open_experiment(options: argparse.Namespace, *, train: bool = False) -> Experiment:
    """Opens --workdir as an `Experiment`, with progress on standard error unless --quiet.

    A config with the section `cascade` gives a `CascadeStages` in its place.

    Args:
      options: of the command line. A workdir that trains stays locked until its `exit_stack` closes.
      train: whether missing stages are trained; otherwise a missing stage is a UserError.
    """
    from prance_jax.config import io
    from prance_jax.core.sharding import is_main_process
    from prance_jax.training.progress import Progress

    config, workdir = open_workdir(options, train=train)
    is_workdir = workdir.is_workdir()
    if train and is_workdir:
        options.exit_stack.enter_context(workdir.lock())
    progress = Progress(quiet=options.quiet or not is_main_process())
    # It opens the data and checks the config: a mistake must not leave a workdir behind.
    experiment = _make_experiment(config, workdir, progress, train)
    if train:
        experiment.check()
        if not is_workdir:
            options.exit_stack.enter_context(workdir.lock())
        classes = tuple(map(str, experiment.source.classes))
        if workdir.claim(io.to_dict(config), options.line, _complete, classes):
            print(f"continuing in {workdir.path}", file=sys.stderr)
    return experiment


def _make_experiment(config: Config, workdir: Workdir, progress: Progress, train: bool) -> Experiment:
    if config.cascade is None:
        from prance_jax.experiments.experiment import Experiment

        return Experiment(config, workdir, progress, train=train)
    from prance_jax.experiments.cascade.stages import CascadeStages

    return CascadeStages(config, workdir, progress, train=train)


def _complete(stored: Mapping[str, Any]) -> Mapping[str, Any]:
    """Brings a stored config up to date."""
    from prance_jax.config import io
    from prance_jax.config.experiment import Config

    return io.complete_config(Config, stored)


def run_clock(workdir: Workdir) -> Callable[[], float]:
    """Returns a function that gives the seconds of a workdir in all sessions so far, and stores them."""
    from prance_jax.core.files import read_json, try_write

    file, start = workdir.path / "seconds.json", time.monotonic()
    before = read_json(file, float) or 0.0

    def elapsed() -> float:
        seconds = before + time.monotonic() - start
        try_write(file, json.dumps(seconds))
        return seconds

    return elapsed


def try_save(save: Callable[..., None], *arguments: Any) -> WriteError | None:
    """Calls a function that writes results, and returns what could not be written.

    So a table that was computed is printed even where the folder is read-only or the disk full.

    Args:
      save: raises WriteError.
      *arguments: its arguments.
    """
    try:
        save(*arguments)
    except WriteError as error:
        return error
    return None
