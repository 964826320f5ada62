"""The scripts that a new user runs first."""

import os
import re
import shutil
import stat
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted([*ROOT.glob("launch/*.sh"), ROOT / ".ci/run"])
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def names(requirements):
    """Distribution names, normalised as package indexes do."""
    found = (re.match(r"[A-Za-z0-9._-]+", line.strip()) for line in requirements)
    return {re.sub(r"[-_.]+", "-", match.group()).lower() for match in found if match}


def shell(*command, **environment):
    environment = {**os.environ, **environment}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_parse_and_stop_at_the_first_error(script):
    assert shell("bash", "-n", str(script)).returncode == 0
    if script.name != "environment.sh":  # that one is sourced: the options are its caller's
        assert "set -euo pipefail" in script.read_text()
    if shutil.which("shellcheck"):
        checked = shell("shellcheck", "-x", str(script))
        assert checked.returncode == 0, checked.stdout


def test_continuous_integration_runs_the_test_script():
    assert "launch/test.sh" in (ROOT / ".ci/run").read_text()
    assert (ROOT / ".ci/run").stat().st_mode & stat.S_IXUSR


def test_demo_runs_a_config_that_exists():
    config = re.search(r"--config (\S+)", (ROOT / "launch/demo.sh").read_text()).group(1)
    assert (ROOT / config).is_file()


def test_requirements_cover_the_package_and_its_tests():
    required = names((ROOT / "requirements.txt").read_text().splitlines())
    assert names(PROJECT["dependencies"]) | names(PROJECT["optional-dependencies"]["test"]) == required


def test_no_package_index_is_named():
    for path in [*SCRIPTS, ROOT / "requirements.txt", ROOT / "pyproject.toml"]:
        assert not re.search(r"index-url|https?://", path.read_text()), path


@pytest.fixture
def old_python(tmp_path):
    """An interpreter that says it is 3.9."""
    fake = tmp_path / "python3.9"
    fake.write_text('#!/bin/sh\ncase "$2" in *exit*) exit 1;; *) echo 3.9;; esac\n')
    fake.chmod(0o755)
    return str(fake)


@pytest.mark.parametrize("script", ["launch/test.sh", "launch/demo.sh"])
def test_an_old_or_missing_python_is_one_clear_line(script, old_python):
    old = shell("bash", script, PYTHON=old_python)
    assert old.returncode == 1 and old.stdout == ""
    assert re.fullmatch(r"Python 3\.11 or newer is needed, .* is 3\.9\..*\n", old.stderr)
    missing = shell("bash", script, PYTHON="no-such-python")
    assert missing.returncode == 1
    assert re.fullmatch(r"No Python found as 'no-such-python'\..*\n", missing.stderr)
