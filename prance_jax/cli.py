"""One door: python -m prance_jax COMMAND --config configs/NAME.py --workdir DIR [--config.a.b=value]."""

from __future__ import annotations

import argparse
import shlex
import sys
from typing import Callable, Sequence

from prance_jax.commands import benchmark, compare, convert, export, profile, tpu_compile, train
from prance_jax.core.errors import UserError


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit status. What a user can mend is told in one line, with status 2."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    overrides = [word for word in arguments if word.startswith("--config.")]
    options = _parser().parse_args([word for word in arguments if not word.startswith("--config.")])
    options.overrides = overrides
    options.line = "python -m prance_jax " + shlex.join(arguments)
    try:
        return options.run(options)
    except UserError as error:
        print(f"prance_jax: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("prance_jax: stopped; the same command continues from the last checkpoint", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m prance_jax",
        description="Vision Transformers that spend compute per image.",
        epilog="Any value of the config can be set by --config.a.b=value, for example --config.meta.steps=500.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(
        name: str, run: Callable, text: str, *, config: bool = True, workdir: bool = True
    ) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(run=run)
        if config:
            required = name == "train"
            sub.add_argument(
                "--config", required=required, help="a file with get_config(), such as configs/digits.py"
            )
            sub.add_argument("--quiet", action="store_true", help="no progress, only the table")
        if workdir:
            sub.add_argument("--workdir", required=True, help="folder of checkpoints, metrics and results")
        return sub

    for own in (train, convert, export, compare, profile, tpu_compile, benchmark):
        own.arguments(command)
    return parser
