"""One clear line for every mistake that needs no trained workdir, and a run of single stages."""

import pytest
from commands.command_line import CONFIG, refused, run

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


COMMANDS = {
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


@pytest.mark.parametrize("command", COMMANDS)
def test_an_override_without_a_config_is_not_ignored(command, capsys):
    override = "--config.model.patch_size=8"
    assert f"{override} changes a --config, which is not given" in refused(
        capsys, command, *COMMANDS[command], override
    )


@pytest.mark.parametrize(
    "error", [MemoryError("Unable to allocate 2 TiB"), RuntimeError("RESOURCE_EXHAUSTED: 2 TiB")]
)
def test_a_lack_of_memory_is_one_line(error, capsys, monkeypatch):
    def fail(options):
        raise error

    monkeypatch.setattr("prance_jax.commands.tpu_compile.open_config", fail)
    assert "not enough memory (" in refused(capsys, "compile", "--topology", "v5e:2x4", "--config", CONFIG)


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
