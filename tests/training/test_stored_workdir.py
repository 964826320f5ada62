"""A workdir that an earlier version trained still loads, evaluates and continues, silently.

`stored/tiny.zip` was trained with `tiny_config.py` before configuration keys were renamed. It holds
the config, the metrics, the results and the newest checkpoint of each stage.
"""

import dataclasses
import functools
import json
import shutil
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest

import prance_jax
from prance_jax.cli import main
from prance_jax.config import io
from prance_jax.config.experiment import Config
from prance_jax.experiments.experiment import Experiment
from prance_jax.experiments.main_table import table_entries
from prance_jax.spec.macs import macs
from prance_jax.training.progress import Progress
from prance_jax.training.workdir import Workdir

STORED = Path(__file__).parents[1] / "stored" / "tiny.zip"
OLD_KEYS = {"prices", "price", "price_rate", "on_plans", "plans", "selective", "sites"}


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stored")
    with zipfile.ZipFile(STORED) as archive:
        archive.extractall(folder)
    return folder


@pytest.fixture(autouse=True)
def renames_are_silent():
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        yield


@pytest.fixture(scope="module")
def experiment(stored):
    workdir = Workdir(stored)
    return Experiment(workdir.config(), workdir, Progress(quiet=True), train=False)


def keys(tree):
    return set(tree).union(*map(keys, tree.values())) if isinstance(tree, dict) else set()


def files(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_old_keys_of_the_config_are_read(stored):
    workdir = Workdir(stored)
    before = workdir.config_file.read_bytes()
    assert OLD_KEYS <= keys(workdir.record())
    config = workdir.config()
    assert (config.evaluation.buckets, config.selector.reward.cost_weight) == (1, 0.4)
    assert not OLD_KEYS & keys(io.to_dict(config))
    assert workdir.claim(io.to_dict(config), "train", functools.partial(io.complete_config, Config)) is True
    assert workdir.config_file.read_bytes() == before


def test_rows_are_those_that_were_stored(stored, experiment):
    """Its last layer computed all tokens. Baselines are left out: they follow the MACs, which were counted so."""
    expected = json.loads((stored / "results.json").read_text())["rows"]
    rows = table_entries(experiment, 0)
    assert [row.method for row in rows] == [row["method"] for row in expected]
    for row, old in zip(rows, expected):
        if row.method not in ("dense", "meta_largest", "prance_prune"):
            continue
        row = dataclasses.replace(row, spec=dataclasses.replace(row.spec, full_last_layer=True))
        evaluation = experiment.evaluate(row, "test")
        macs_kept = evaluation.macs.mean() / macs(row.spec, row.spec.largest).total
        assert evaluation.top1 == pytest.approx(old["top1"], abs=1e-9), row.method
        assert macs_kept == pytest.approx(old["macs_kept"], rel=1e-6), row.method


def test_it_serves(stored, experiment):
    """Adaptive execution gives the accuracy of the stored row."""
    model, split = prance_jax.load(stored), experiment.source.split("test")
    logits = np.asarray(model(split.images))
    assert logits.shape == (50, 10) and np.isfinite(logits).all()
    (row,) = [
        row for row in json.loads((stored / "results.json").read_text())["rows"] if "prance" in row["method"]
    ]
    assert (logits.argmax(-1) == split.labels).mean() == pytest.approx(row["top1"], abs=1e-9)


def test_training_continues_at_its_end(stored, tmp_path, capsys):
    """The same config by its current names: nothing is trained again, and only the record gains the classes."""
    workdir, file = tmp_path / "run", tmp_path / "config.py"
    shutil.copytree(stored, workdir)
    config = io.to_dict(Workdir(stored).config())
    file.write_text(f"def get_config():\n    return {config!r}\n")
    before = files(workdir)
    words = ["--stage", "finetune", "--config", str(file), "--workdir", str(workdir), "--quiet"]
    assert main(["train", *words]) == 0
    output = capsys.readouterr()
    assert f"continuing in {workdir}" in output.err and "stage finetune is done" in output.out
    after = files(workdir)
    record = json.loads(after.pop(workdir / "config.json"))
    assert record["classes"] == [str(digit) for digit in range(10)] and record["config"] == config
    assert after.pop(workdir / ".lock").startswith(b"process ")
    del before[workdir / "config.json"]
    assert after == before
