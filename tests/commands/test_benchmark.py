"""The commands `benchmark` and `profile` without a trained workdir."""

import json
from pathlib import Path

import pytest
from commands.command_line import CONFIG, refused, run


def test_the_benchmark_of_serving(tmp_path, capsys):
    out = tmp_path / "speed"
    words = ["--repeats", "2", "--batches", "1,5", "--dtypes", "float32", "--out", str(out)]
    status, out_text, _ = run(capsys, "benchmark", "--config", CONFIG, *words)
    assert status == 0 and "random weights, an even spread" in out_text
    record = json.loads((out / "benchmark.json").read_text())
    assert [(row["method"], row["batch"]) for row in record["rows"]] == [
        *((method, 1) for method in ("dense", "masked", "adaptive", "tome", "evit", "largest")),
        *((method, 5) for method in ("dense", "masked", "adaptive", "tome", "evit")),
    ]
    for row in record["rows"]:
        assert row["realised_share"] == pytest.approx(row["speedup"] * row["macs_kept"])
        assert row["images_per_s"] == pytest.approx(1e3 * row["batch"] / row["latency_ms"])
        assert (row["macs_kept"] == 1) == (row["method"] == "dense")
    table = (out / "benchmark.csv").read_text().splitlines()
    assert table[0].startswith("model,infer_samples_per_sec,infer_step_time") and len(table) == 12
    assert "--batches '1,x'" in refused(capsys, "benchmark", "--config", CONFIG, "--batches", "1,x")


def test_the_benchmark_of_the_rollout(capsys):
    status, out, _ = run(capsys, "benchmark", "--config", CONFIG, "--measure", "rollout", "--repeats", "1")
    figures = json.loads(out)
    assert status == 0 and figures["ratio"] == pytest.approx(
        figures["rollout_decisions_per_s"] / figures["loop_decisions_per_s"]
    )


def test_the_benchmark_of_the_rollout_on_a_table(capsys):
    config = str(Path(__file__).parents[1] / "tiny_cascade.py")
    status, out, _ = run(capsys, "benchmark", "--config", config, "--measure", "rollout", "--repeats", "2")
    figures = json.loads(out)
    assert status == 0 and figures["batch"] == 32 and figures["answers"] == "random"
    for name in ("rollout", "learning"):
        low, high = figures["spread"][name]
        assert figures[f"{name}_decisions_per_s"] == pytest.approx((low + high) / 2)


def test_the_benchmark_of_the_input(tmp_path, capsys):
    from PIL import Image

    for split in ("train", "test"):
        for name in "ab":
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(4):
                Image.new("RGB", (12, 12)).save(tmp_path / split / name / f"{number}.png")
    words = ["--measure", "input", "--repeats", "1", "--config.data.images.size=10"]
    folder = ["--config.data.name=folder", f"--config.data.folder.path={tmp_path}"]
    status, out, _ = run(capsys, "benchmark", "--config", CONFIG, *words, *folder)
    figures = json.loads(out)
    assert status == 0 and set(figures["images_per_s"]) == {"stream", "library", "memory"}
    assert "is for images on disk" in refused(capsys, "benchmark", "--config", CONFIG, *words)


@pytest.mark.parametrize(
    "words, message",
    [
        (["benchmark", "--measure", "contract"], "--measure contract is now called --measure guarantee"),
        (["profile", "--what", "plans", "--out", "x.json"], "--what plans is now called --what buckets"),
    ],
)
def test_old_names_of_options_are_accepted_with_a_warning(words, message, capsys):
    """The commands then stop: neither has a workdir or a config."""
    with pytest.warns(FutureWarning, match=message):
        assert "--workdir" in refused(capsys, *words)


def test_measurements_need_a_config_or_a_workdir(capsys):
    assert "benchmark needs a --config here" in refused(capsys, "benchmark", "--measure", "dense")
    assert "benchmark needs a --workdir here" in refused(capsys, "benchmark", "--measure", "guarantee")
    assert "compile needs a --config here" in refused(capsys, "compile", "--topology", "v5e:2x4")
