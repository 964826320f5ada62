"""The command line: python -m prance_jax COMMAND [options] [--config.a.b=value]."""

from __future__ import annotations

import argparse
import contextlib
import logging
import shlex
import sys
import textwrap
from typing import Callable, Iterator, Sequence

from prance_jax.commands import benchmark, compare, convert, export, profile, tpu_compile, train
from prance_jax.core.errors import UserError

# Modules of the commands, by the headings of --help.
GROUPS = {
    "train and look": (train,),
    "use": (convert, export),
    "compare and measure": (compare, benchmark, profile, tpu_compile),
}
_WIDTH = 79
_EPILOG = """\
COMMAND --help describes a command and has an example.

Any value of a config can be set: --config.meta.steps=500, --config.seeds=0,1,2. For an unknown name, the
error names the nearest right one. A workdir belongs to one configuration."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command.

    A mistake that the user can correct is printed as one line on standard error, as is a lack of memory.

    Args:
      arguments: the words after `python -m prance_jax`; those of the process by default.

    Returns:
      Exit status: 0, 2 for such a mistake, 130 after Ctrl-C.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    overrides = [word for word in arguments if word.startswith("--config.")]
    options = make_parser().parse_args([word for word in arguments if not word.startswith("--config.")])
    options.overrides = overrides
    options.line = "python -m prance_jax " + shlex.join(arguments)
    # These import JAX, which --help does not need.
    from prance_jax.core.files import check_writable
    from prance_jax.core.sharding import check_devices

    try:
        if overrides and getattr(options, "config", None) is None:
            raise UserError(
                f"{overrides[0]} changes a --config, which is not given; a workdir keeps the configuration that "
                "it was made with"
            )
        with contextlib.ExitStack() as options.exit_stack, _plain_warnings():
            if getattr(options, "distributed", None) is None:
                check_devices()  # of several processes: `init_distributed` does
            for name in ("out", "target"):
                if hasattr(options, name):
                    check_writable(getattr(options, name))
            return options.run(options)
    except UserError as error:
        print(f"prance_jax: {error}", file=sys.stderr)
        return 2
    except (MemoryError, RuntimeError) as error:
        # JAX reports this as a RuntimeError.
        if isinstance(error, RuntimeError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        reason = str(error).splitlines()[0] if str(error) else "out of memory"
        print(
            f"prance_jax: not enough memory ({reason}); set smaller batches, images, pools or networks",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        print("prance_jax: stopped; the same command continues from the last checkpoint", file=sys.stderr)
        return 130


@contextlib.contextmanager
def _plain_warnings() -> Iterator[None]:
    """Prints each warning of this package as one line on standard error, whatever other packages set up."""
    logger, handler = logging.getLogger("prance_jax"), logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("prance_jax: %(message)s"))
    propagate, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate


def make_parser() -> argparse.ArgumentParser:
    """Builds the parser of all commands; overrides (--config.a.b=value) are taken out before it."""
    parser = argparse.ArgumentParser(
        prog="python -m prance_jax",
        usage="%(prog)s COMMAND [options]",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    subparsers = parser.add_subparsers(
        required=True, metavar="COMMAND", dest="command", prog=parser.prog, help=argparse.SUPPRESS
    )
    lines = ["Vision Transformers that spend compute per image."]
    for heading, modules in GROUPS.items():
        lines += ["", f"{heading}:"]

        def add_command(
            name: str,
            run: Callable[[argparse.Namespace], int],
            summary: str,
            description: str,
            example: str,
            *,
            config: bool = True,
            workdir: bool = True,
        ) -> argparse.ArgumentParser:
            lines.append(f"  {name:10} {summary}")
            command = subparsers.add_parser(
                name,
                description=_fill(description),
                epilog=f"example:\n  {parser.prog} {name} {example}",
                formatter_class=argparse.RawDescriptionHelpFormatter,
            )
            command.set_defaults(run=run)
            if config:
                command.add_argument(
                    "--config",
                    required=name == "train",
                    help="a file with get_config(), such as configs/digits.py; --config.a.b=value sets a "
                    "value of it",
                )
                command.add_argument(
                    "--quiet", action="store_true", help="print no progress, only the result"
                )
            if workdir:
                command.add_argument(
                    "--workdir", required=True, help="the folder of checkpoints, metrics and results"
                )
            return command

        for module in modules:
            module.add_commands(add_command)
    parser.description = "\n".join(lines)
    parser.epilog = _fill(_EPILOG)
    return parser


def _fill(text: str) -> str:
    """Wraps each paragraph; paragraphs are separated by blank lines."""
    return "\n\n".join(textwrap.fill(" ".join(part.split()), _WIDTH) for part in text.split("\n\n"))
