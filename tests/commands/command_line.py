"""Runs commands in this process and checks what they print."""

from pathlib import Path

from prance_jax.cli import main

CONFIG = str(Path(__file__).parents[1] / "tiny_config.py")


def run(capsys, *arguments):
    """Exit status, standard output and standard error of a command."""
    status = main(list(arguments))
    printed = capsys.readouterr()
    return status, printed.out, printed.err


def refused(capsys, *arguments):
    """The error of a command: status 2 and exactly one line on standard error."""
    status, _, errors = run(capsys, *arguments)
    lines = [line for line in errors.splitlines() if not line.startswith("continuing in")]
    assert status == 2 and len(lines) == 1 and lines[0].startswith("prance_jax: "), errors
    return lines[0]
