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
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]


def names(requirements):
    """Distribution names, normalised as package indexes do."""
    matches = (re.match(r"[A-Za-z0-9._-]+", line.strip()) for line in requirements)
    return {re.sub(r"[-_.]+", "-", match.group()).lower() for match in matches if match}


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
    extras = PROJECT["optional-dependencies"]
    assert names(PROJECT["dependencies"]) | names(extras["test"]) | names(extras["tfds"]) == required


def test_files_without_code_are_package_data():
    """An installed wheel has the templates of the report."""
    patterns = PYPROJECT["tool"]["setuptools"]["package-data"]
    declared = {
        path
        for package, names in patterns.items()
        for name in names
        for path in (ROOT / package.replace(".", "/")).glob(name)
    }
    files = {path for path in (ROOT / "prance_jax").rglob("*") if path.is_file()}
    assert {path for path in files if path.suffix not in (".py", ".pyc")} == declared != set()


def test_no_package_index_is_named():
    for path in [*SCRIPTS, ROOT / "requirements.txt", ROOT / "pyproject.toml"]:
        assert not re.search(r"index-|http", path.read_text()), path


@pytest.mark.parametrize(
    "listed, preload, expected",
    [
        ("libjemalloc.so.2 (libc6,x86-64) => /lib/libjemalloc.so.2", "", "/lib/libjemalloc.so.2"),
        ("libz.so.1 (libc6,x86-64) => /lib/libz.so.1", "", "none; faster with jemalloc"),
        ("libjemalloc.so.2 (libc6,x86-64) => /lib/libjemalloc.so.2", "mine.so", "mine.so"),
    ],
)
def test_freed_memory_is_kept_where_jemalloc_is(listed, preload, expected, tmp_path):
    """A user's own choice stays; without jemalloc, one line names the package to install."""
    for name, output in (("ldconfig", f"\t{listed}"), ("uname", "Linux")):
        (tmp_path / name).write_text(f"#!/bin/sh\necho '{output}'\n")
        (tmp_path / name).chmod(0o755)
    script = (
        f"unset LD_PRELOAD; source launch/environment.sh; PATH={tmp_path}:$PATH; {f'LD_PRELOAD={preload};' if preload else ''} "
        'text="$(keep_freed_memory)"; keep_freed_memory > /dev/null; chosen="$LD_PRELOAD"; unset LD_PRELOAD; '
        'echo "${chosen:-none}$(echo "$text" | sed "s/.*apt-get.*/; faster with jemalloc/")"'
    )
    done = shell("bash", "-c", script)
    assert done.stdout.strip() == expected, done


@pytest.fixture
def old_python(tmp_path):
    """An interpreter that reports version 3.9."""
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


def test_a_dry_run_of_a_pod_shows_every_step_and_runs_none(tmp_path):
    """With a `gcloud` that records a call."""
    fake = tmp_path / "gcloud"
    fake.write_text(f"#!/bin/sh\ntouch {tmp_path}/called\n")
    fake.chmod(0o755)
    done = shell(
        *("bash", "launch/tpu_pod.sh", "configs/imagenet_small.py", "--config.meta.steps=9", "--dry-run"),
        **{"PATH": f"{tmp_path}:{os.environ['PATH']}", "BUCKET": "bucket", "TYPE": "v6e-64"},
    )
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("gcloud")]
    verbs = [line.split()[4] for line in lines]
    assert verbs == ["create", "scp", "ssh", "ssh", "ssh", "scp", "delete"]
    assert "--accelerator-type v6e-64 --version v2-alpha-tpuv6e" in lines[0]
    assert (
        "--distributed" in lines[4] and "imagenet_small.py" in lines[4] and "config.meta.steps=9" in lines[4]
    )
    assert not (tmp_path / "called").exists()
    refused = shell("bash", "launch/tpu_pod.sh", "configs/imagenet_small.py", BUCKET="")
    assert refused.returncode == 2 and "BUCKET is empty" in refused.stderr


def test_a_lost_pod_is_created_again_and_the_run_continues(tmp_path):
    """A `gcloud` whose first slice is preempted while it trains."""
    fake = tmp_path / "gcloud"
    fake.write_text(
        f"""#!/bin/bash
log={tmp_path}/log
case "$*" in
*describe*) cat {tmp_path}/state 2>/dev/null ;;
*create*) echo create >>$log; echo READY >{tmp_path}/state ;;
*delete*) echo delete >>$log; rm -f {tmp_path}/state ;;
*prance_jax*)
    echo train >>$log
    if [[ $(grep -c train $log) == 1 ]]; then echo PREEMPTED >{tmp_path}/state; exit 255; fi ;;
esac
"""
    )
    fake.chmod(0o755)
    done = shell(
        *("bash", "launch/tpu_pod.sh", "configs/imagenet_small.py"),
        **{"PATH": f"{tmp_path}:{os.environ['PATH']}", "BUCKET": "bucket"},
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "log").read_text().split() == [
        "create",
        "train",
        "delete",
        "create",
        "train",
        "delete",
    ]
    assert "The slice was lost" in done.stderr


def test_a_dry_run_of_gpu_nodes():
    one = shell("bash", "launch/gpu_node.sh", "--dry-run", "configs/cifar10.py")
    assert one.stdout.split() == [
        *(".venv/bin/python", "-m", "prance_jax", "train", "--config", "configs/cifar10.py"),
        *("--workdir", "runs/cifar10"),
    ]
    two = shell(
        "bash", "launch/gpu_node.sh", "--dry-run", "configs/cifar10.py", HOSTS="a b"
    ).stdout.splitlines()
    assert [line.split()[:2] for line in two] == [["ssh", "a"], ["ssh", "b"]]
    assert "a:29500\\,2\\,0" in two[0] and "a:29500\\,2\\,1" in two[1]
    slurm = shell("bash", "launch/gpu_node.sh", "--dry-run", "configs/cifar10.py", NODES="4").stdout
    assert slurm.startswith("srun --nodes 4 --ntasks-per-node 1") and "--distributed auto" in slurm
    for words in (
        ("configs/cifar10.py", "--dry-run"),
        ("configs/cifar10.py", "--config.seeds=0", "--dry-run"),
    ):
        assert shell("bash", "launch/gpu_node.sh", *words).stdout.startswith(
            ".venv/bin/python -m prance_jax train"
        )
    unknown = shell("bash", "launch/gpu_node.sh", "configs/cifar10.py", "--dryrun")
    assert unknown.returncode == 2 and "'--dryrun' is not expected here" in unknown.stderr
    refused = shell("bash", "launch/gpu_node.sh", "configs/nowhere.py")
    assert refused.returncode == 2 and "usage" in refused.stderr
