"""One clear line for every mistake that needs no trained workdir, and a run of single stages."""

import argparse
import errno

import numpy as np
import pytest
from commands.command_line import CONFIG, refused, run
from PIL import Image

from prance_jax.cli import GROUPS
from prance_jax.config import io
from prance_jax.config.experiment import Config
from prance_jax.results.rows import Results, Row
from prance_jax.training.workdir import Workdir

BAD_VALUES = [
    ("--config.meta.step=5", "config.meta.step", "steps"),
    ("--config.metta.steps=5", "config.metta", "meta"),
    ("--config.meta.steps=many", "config.meta.steps", "int"),
    (
        "--config.selector.keep_choices=(0.0,0.5)",
        "config.selector.keep_choices[0] = 0.0",
        "above 0 and up to 1",
    ),
    ("--config.selector.keep_choices=(0.5,nan)", "nan", ""),
    ("--config.model.first_group=5x1", "first group '5x1'", "choose from min, max"),
    ("--config.model.space.widths=(4,16)", "widths go up to 16", "stop at 8"),
    ("--config.token_modes=('prun',)", "'prun' is not known", "prune"),
    ("--config.data.name=imagenet", "'imagenet' is not known", "digits"),
    ("--config.data.digits.test_images=0", "config.data.digits.test_images = 0", "from 1 to"),
    ("--config.data.digits.train_digits=0", "config.data.digits.train_digits = 0", "from 20 to 1,757"),
    ("--config.model.patch_size=3", "image size 20", "patch size 3"),
    ("--config.seeds=()", "config.seeds = ()", "1 or more entries"),
    ("--config.budgets=(0.5,)", "selector.cost_weights and budgets", "give both or neither"),
]


@pytest.mark.parametrize("override, what, right", BAD_VALUES, ids=[case[0] for case in BAD_VALUES])
def test_a_bad_value_is_one_clear_line(override, what, right, tmp_path, capsys):
    error = refused(
        capsys, "train", "--config", CONFIG, "--workdir", str(tmp_path / "w"), "--quiet", override
    )
    assert what in error and right in error and not (tmp_path / "w").exists()


WITHOUT_CONFIG = {
    "evaluate": ("--workdir", "w"),
    "show": ("--workdir", "w"),
    "export": ("--workdir", "w", "--out", "w.prance"),
    "compare": ("--workdir", "w"),
    "segment": ("--workdir", "w"),
    "pit": ("--workdir", "w"),
    "benchmark": ("--workdir", "w"),
    "profile": ("--workdir", "w", "--out", "w.json"),
    "compile": ("--topology", "v5e:2x4"),
    "convert": ("a.npz", "b.safetensors", "--model", "deit_tiny_patch16_224"),
}


@pytest.mark.parametrize("command", WITHOUT_CONFIG)
def test_an_override_without_a_config_is_not_ignored(command, capsys):
    override = "--config.model.patch_size=8"
    assert f"{override} changes a --config, which is not given" in refused(
        capsys, command, *WITHOUT_CONFIG[command], override
    )


@pytest.mark.parametrize(
    "error", [MemoryError("Unable to allocate 2 TiB"), RuntimeError("RESOURCE_EXHAUSTED: 2 TiB")]
)
def test_a_lack_of_memory_is_one_line(error, capsys, monkeypatch):
    def fail(options):
        raise error

    monkeypatch.setattr("prance_jax.commands.tpu_compile.open_config", fail)
    assert "not enough memory (" in refused(capsys, "compile", "--topology", "v5e:2x4", "--config", CONFIG)


BEFORE_TRAINING = [
    ("--config.data.name=folder", "data.folder.path"),
    ("--config.meta.init_from=nowhere.pth", "nowhere.pth does not exist"),
    ("--config.model.first_group=16x9", "first group"),
]


@pytest.mark.parametrize("override, words", BEFORE_TRAINING, ids=[case[0] for case in BEFORE_TRAINING])
def test_a_mistake_found_when_things_are_built_leaves_no_workdir(override, words, tmp_path, capsys):
    words_before = ("train", "--config", CONFIG, "--workdir", str(tmp_path / "runs/w"), "--quiet")
    assert words in refused(capsys, *words_before, "--config.data.images.size=20", override)
    assert not list(tmp_path.iterdir())


COMMANDS = {
    "train": ("--config", CONFIG, "--workdir", "w"),
    "evaluate": ("--workdir", "w"),
    "show": ("--workdir", "w"),
    "compare": ("--workdir", "w"),
    "segment": ("--workdir", "w"),
    "pit": ("--workdir", "w"),
    "export": ("--workdir", "w", "--out", "a.prance"),
    "convert": ("a.pth", "b.safetensors", "--model", "deit_tiny_patch16_224"),
    "benchmark": ("--config", CONFIG),
    "profile": ("--config", CONFIG, "--out", "a.json"),
    "compile": ("--config", CONFIG, "--topology", "v5e:2x4"),
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    "error", [RuntimeError("Unable to initialize backend 'tpu': gone\nmore"), AssertionError()]
)
def test_no_device_of_the_wanted_platform(command, error, tmp_path, monkeypatch, capsys):
    def no_devices():
        raise error

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("jax.devices", no_devices)
    assert "JAX finds no device of platform" in refused(capsys, command, *COMMANDS[command])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "command", [command for command, words in COMMANDS.items() if "--out" in words] + ["convert"]
)
@pytest.mark.parametrize(
    "out, reason", [("gs://bucket/a.prance", "local path"), ("file/a", "Not a directory")]
)
def test_a_place_that_cannot_be_written_is_told_before_any_work(
    command, out, reason, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    words = [out if word in ("a.prance", "a.json", "b.safetensors") else word for word in COMMANDS[command]]
    assert reason in refused(capsys, command, *words)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_every_command_is_tested_without_a_device():
    modules = [module for group in GROUPS.values() for module in group]
    names = []
    for module in modules:
        module.add_commands(lambda name, *rest, **options: names.append(name) or argparse.ArgumentParser())
    assert set(names) == set(COMMANDS)


def test_a_folder_with_another_class_is_refused_before_anything_trains(tmp_path, capsys):
    """The path may differ from that of the stage before, the classes may not."""
    for split in ("train", "test"):
        for name in ("frog", "olm", "toad"):
            (tmp_path / "moved" / split / name).mkdir(parents=True)
            for number in range(4):
                pixels = np.random.default_rng(number).integers(0, 255, (20, 20, 3), np.uint8)
                Image.fromarray(pixels).save(tmp_path / "moved" / split / name / f"{number}.png")
    overrides = ["--config.data.name=folder", "--config.data.images.size=20"]
    path = "--config.data.folder.path="
    config = io.load_config(CONFIG, Config, [*overrides, f"{path}{tmp_path}/data"])
    workdir = Workdir(tmp_path / "w")
    workdir.claim(io.to_dict(config), "", classes=("frog", "newt", "toad"))
    (workdir.checkpoints / "seed0/dense/6").mkdir(parents=True)
    words = ["train", "--config", CONFIG, "--workdir", str(workdir.path), *overrides]
    assert "new: olm; missing: newt; 3 here" in refused(capsys, *words, f"{path}{tmp_path}/moved")
    assert "data.images.crop: 0.5 here, 0.875 in the workdir" in refused(
        capsys, *words, f"{path}{tmp_path}/moved", "--config.data.images.crop=0.5"
    )
    assert {path.name for path in workdir.path.iterdir()} == {"config.json", ".lock", "checkpoints"}


@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_a_table_is_printed_where_it_cannot_be_written(command, tmp_path, monkeypatch, capsys):
    """The folder became read-only after training."""
    config = io.load_config(CONFIG, Config)
    workdir = Workdir(tmp_path / "w")
    workdir.claim(io.to_dict(config), "", classes=tuple(map(str, range(10))))
    (workdir.checkpoints / "seed0/dense/6").mkdir(parents=True)

    def evaluate_rows(experiment, line, elapsed):
        yield Results((Row(method="dense", seed=0, top1=0.4321),), 7, "machine", line, elapsed())

    def refuse(*arguments):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("prance_jax.results.evaluate_rows.evaluate_rows", evaluate_rows)
    monkeypatch.setattr("prance_jax.core.files.os.replace", refuse)
    words = ("--config", CONFIG, "--workdir", str(workdir.path), "--quiet")
    status, out, errors = run(capsys, command, *words)
    assert status == 0 and "43.21" in out and "report:" not in out
    assert f"could not write {workdir.path}/results.json: Read-only file system" in errors
    assert {path.name for path in workdir.path.iterdir()} <= {"config.json", ".lock", "checkpoints"}


def test_one_stage_at_a_time(tmp_path, capsys):
    status, out, _ = run(
        capsys, "train", "--config", CONFIG, "--workdir", str(tmp_path / "w"), "--stage", "dense", "--quiet"
    )
    assert status == 0 and "next: --stage meta" in out
    assert (tmp_path / "w/checkpoints/seed0/dense").is_dir() and not (
        tmp_path / "w/checkpoints/seed0/meta"
    ).exists()


def test_evaluating_what_was_not_trained(tmp_path, capsys):
    run(capsys, "train", "--config", CONFIG, "--workdir", str(tmp_path / "w"), "--stage", "dense", "--quiet")
    assert "stage seed0/meta is at step 0 of 6; run the train command" in refused(
        capsys, "evaluate", "--workdir", str(tmp_path / "w")
    )
    assert "not a workdir" in refused(capsys, "evaluate", "--workdir", str(tmp_path / "nowhere"))


def test_a_missing_config_file(tmp_path, capsys):
    assert "nowhere.py" in refused(
        capsys, "train", "--config", "nowhere.py", "--workdir", str(tmp_path / "w")
    )
