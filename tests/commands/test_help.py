"""Help: every command stands under a heading, with a description and an example that parses."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from prance_jax.cli import GROUPS, main, make_parser
from prance_jax.config.experiment import Config
from prance_jax.config.io import load_config

ROOT = Path(__file__).parents[2]
COMMANDS = {
    "train and look": ["train", "evaluate", "show"],
    "use": ["convert", "export"],
    "compare and measure": ["compare", "segment", "pit", "benchmark", "profile", "compile"],
}
NAMES = [name for names in COMMANDS.values() for name in names]


def help_text(capsys, *words):
    with pytest.raises(SystemExit) as stopped:
        main([*words, "--help"])
    assert stopped.value.code == 0
    return capsys.readouterr().out


def test_help_as_a_module():
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-m", "prance_jax", "--help"], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0 and "train" in done.stdout and "evaluate" in done.stdout


def test_commands_are_grouped(capsys):
    text = help_text(capsys)
    groups, heading = {}, None
    for line in text.splitlines():
        if line.endswith(":") and line[:-1] in GROUPS:
            heading = groups.setdefault(line[:-1], [])
        elif command := re.match(r"  (\w+) +\w", line):
            heading.append(command.group(1))
    assert groups == COMMANDS
    assert max(map(len, text.splitlines())) < 100


@pytest.mark.parametrize("name", NAMES)
def test_each_command_has_a_description_and_an_example(name, capsys, monkeypatch):
    """The real parser reads the example; its config exists and knows its overrides."""
    monkeypatch.setenv("COLUMNS", "80")
    text = help_text(capsys, name)
    usage, description = text.split("\n\n")[:2]
    assert usage.startswith("usage: ") and re.match(r"[A-Z]\w+s ", description), "starts with a verb"
    head, example = text.rstrip().rsplit("\n", 1)
    assert head.endswith("\n\nexample:")
    assert max(map(len, head.splitlines())) < 90
    program, line = example.strip().split(f" {name} ", 1)
    assert program == "python -m prance_jax"
    words = shlex.split(line)
    overrides = [word for word in words if word.startswith("--config.")]
    options = make_parser().parse_args([name, *(word for word in words if word not in overrides)])
    if options.config is not None:
        load_config(ROOT / options.config, Config, overrides)
    else:
        assert not overrides


@pytest.mark.parametrize("name", NAMES)
def test_every_option_is_described(name):
    """No option stands in the help without words."""
    commands = next(action.choices for action in make_parser()._actions if isinstance(action.choices, dict))
    assert not [action.dest for action in commands[name]._actions if not action.help]


@pytest.mark.parametrize(
    "path", sorted((ROOT / "prance_jax/commands").glob("*.py")), ids=lambda path: path.name
)
def test_configs_and_workdirs_are_opened_in_one_place(path):
    names = r"load_config|Workdir|Experiment|claim|from_dict"
    opened = set(re.findall(rf"\b({names})\(", path.read_text()))
    expected = {"load_config", "Workdir", "Experiment", "claim"} if path.name == "common.py" else set()
    assert opened == expected
