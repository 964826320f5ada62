"""Ruff's checks and its format, as pyproject.toml sets them: imports, unused names, the docstrings' form."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("command", (["check"], ["format", "--check"]), ids=("check", "format"))
def test_ruff(command):
    words = [sys.executable, "-m", "ruff", *command, "--no-cache", "prance_jax", "tests", "configs", "launch"]
    result = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout
