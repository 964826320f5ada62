"""The command line end to end on a tiny network, and one clear line for every mistake of a user."""

import json
import shutil
import sys
import types
from pathlib import Path

import chex
import notebook
import pytest
from commands.command_line import CONFIG, refused, run
from visualize.browser import CHROMIUM, Page, measure_page

import prance_jax
from prance_jax.cli import main
from prance_jax.commands import train
from prance_jax.core.errors import UserError
from prance_jax.data.digits.digits import load_digits_source
from prance_jax.experiments.experiment import Experiment
from prance_jax.spec.model_spec import ModelSpec
from prance_jax.spec.search_space import SearchSpace
from prance_jax.training.progress import Progress
from prance_jax.training.workdir import Workdir
from prance_jax.zoo.formats.files import read_card
from prance_jax.zoo.load import load_weights


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("cli") / "run"
    assert main(["train", "--config", CONFIG, "--workdir", str(workdir), "--quiet"]) == 0
    return workdir


def test_train_writes_what_it_says(trained):
    results = json.loads((trained / "results.json").read_text())
    assert [row["method"] for row in results["rows"]] == [
        "dense",
        "meta_largest",
        "best_static",
        "random_policy",
        "tome",
        "evit",
        "prance_prune",
    ]
    assert results["images"] == 50 and "train --config" in results["command"] and results["seconds"] > 0
    assert "| PRANCE (prune) |" in (trained / "results.md").read_text()
    for name in (
        "accuracy",
        "show/kept_prune",
        "show/easiest_hardest_prune",
        "show/macs_prune",
        "show/learning",
    ):
        assert (trained / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    stages = {json.loads(line)["stage"] for line in (trained / "metrics.jsonl").read_text().splitlines()}
    assert stages == {"seed0/dense", "seed0/meta", "seed0/prune/selector", "seed0/prune/finetune"}


def test_evaluate_needs_only_the_workdir(trained, capsys):
    before = json.loads((trained / "results.json").read_text())["rows"]
    status, out, _ = run(capsys, "evaluate", "--workdir", str(trained), "--quiet")
    assert status == 0 and "PRANCE (prune)" in out
    after = json.loads((trained / "results.json").read_text())["rows"]
    assert [row["top1"] for row in after] == [row["top1"] for row in before]


def test_compare_adds_other_methods_to_a_trained_workdir(trained, tmp_path, capsys):
    """Not tuned, tuned, with an own token count per image, with channels removed; PRANCE at the same MACs."""
    workdir = tmp_path / "run"
    shutil.copytree(trained, workdir)
    before = (workdir / "results.json").read_bytes()
    status, out, _ = run(capsys, "compare", "--workdir", str(workdir), "--quiet")
    assert status == 0 and "comparison.png" in out
    rows = {row["method"]: row for row in json.loads((workdir / "comparison.json").read_text())["rows"]}
    assert list(rows) == [
        "dense",
        "dense_tuned",
        "cait_70",
        "cait_tuned_70",
        "spvit_tuned_70",
        "spvit_free_70",
        "cait_cdcp_tuned_70",
        "mctf_consistent_tuned_70",
        "prance_prune",
    ]
    trained_rows = {row["method"]: row for row in json.loads(before)["rows"]}
    assert rows["dense"]["top1"] == trained_rows["dense"]["top1"]
    assert rows["prance_prune"]["macs_kept"] == trained_rows["prance_prune"]["macs_kept"]
    assert rows["cait_70"]["macs_kept"] == rows["cait_tuned_70"]["macs_kept"] < 0.8
    assert rows["cait_cdcp_tuned_70"]["active_params"] < rows["dense"]["active_params"]
    assert rows["cait_70"]["images_per_s"] == rows["cait_tuned_70"]["images_per_s"]
    assert (workdir / "results.json").read_bytes() == before


def test_segment_in_the_same_workdir(trained, tmp_path, capsys):
    workdir = tmp_path / "run"
    shutil.copytree(trained, workdir)
    status, out, _ = run(capsys, "segment", "--workdir", str(workdir), "--quiet")
    rows = json.loads((workdir / "segmentation.json").read_text())["rows"]
    assert status == 0 and [row["method"] for row in rows] == [
        "dense",
        "cait",
        "cait_tuned",
        "meta_largest",
        "prance_prune",
    ]
    assert rows[0]["macs_kept"] == 1 and rows[1]["macs_kept"] == rows[2]["macs_kept"] < 0.9
    assert rows[3]["macs_kept"] == 1 and 0.2 < rows[4]["macs_kept"] < 1.02
    assert all(0 <= row["miou"] <= row["accuracy"] <= 1 for row in rows) and "| CAIT, fine-tuned |" in out


def test_pit_continues_what_is_there(tmp_path, capsys):
    workdir = tmp_path / "run"
    status, out, _ = run(capsys, "pit", "--config", CONFIG, "--workdir", str(workdir), "--quiet")
    first = (workdir / "pit.json").read_text()
    rows = json.loads(first)["rows"]
    assert status == 0 and [row["method"] for row in rows] == ["dense", "dense_tuned", "spvit_tuned_75"]
    assert rows[1]["macs_kept"] == 1 and 0.6 < rows[2]["macs_kept"] < 0.9 and not rows[1]["kept"]
    assert len(rows[2]["kept"]) == len(rows[2]["target"]) == 1 and "| SPViT, fine-tuned, 75 % |" in out
    metrics = (workdir / "metrics.jsonl").read_bytes()
    run(capsys, "pit", "--workdir", str(workdir), "--quiet")
    assert json.loads((workdir / "pit.json").read_text())["rows"] == rows
    assert (workdir / "metrics.jsonl").read_bytes() == metrics


def test_a_trained_workdir_is_a_function_of_images(trained):
    """Served by the executor, the accuracy and MACs are those of the table."""
    model = prance_jax.load(trained)
    split = load_digits_source(Workdir(trained).config().data.digits).split("test")
    rows = {row["method"]: row for row in json.loads((trained / "results.json").read_text())["rows"]}
    explanations = model.explain(split.images)
    is_right = [image.predicted == label for image, label in zip(explanations, split.labels)]
    assert sum(is_right) / 50 == pytest.approx(rows["prance_prune"]["top1"])
    macs_kept = sum(image.macs_kept for image in explanations) / 50
    assert macs_kept == pytest.approx(rows["prance_prune"]["macs_kept"], rel=1e-5)
    with pytest.raises(UserError, match="has seeds .* not seed 7"):
        prance_jax.load(trained, seed=7)


def test_pictures_that_cannot_be_drawn_cost_no_run(monkeypatch):
    def broken(experiment):
        raise MemoryError("no room for a picture")

    monkeypatch.setattr("prance_jax.visualize.report.write_report", broken)
    experiment = types.SimpleNamespace(config=types.SimpleNamespace(cascade=None))
    assert (
        train.write_pictures(experiment, everything=True) == "not drawn (MemoryError: no room for a picture)"
    )
    monkeypatch.setitem(
        sys.modules, "prance_jax.visualize.report", None
    )  # as where a library of it is missing
    assert train.write_pictures(experiment, everything=True).startswith("not drawn (ModuleNotFoundError")


def test_the_report_is_one_page_that_loads_nothing(trained, tmp_path):
    page = Page((trained / "report.html").read_text())
    assert not page.loads and len(page.images) == page.tags["img"] >= 60
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert "PRANCE (prune)" in page.text and "{" not in page.text.split("The run")[0]
    if CHROMIUM is None:
        pytest.skip("no chromium to look at it with")
    for width in (500, 1200):
        facts = measure_page(trained / "report.html", tmp_path, width)
        assert facts["images"] == len(page.images) and facts["broken"] == 0
        assert facts["page_width"] <= facts["window_width"], "the page is wider than the window"


def test_errors_of_show(trained, tmp_path, capsys):
    words = ["show", "--workdir", str(trained)]
    assert "blue.png does not exist" in refused(capsys, *words, "--images", str(tmp_path / "blue.png"))
    assert "has seeds (0,) and token modes" in refused(capsys, *words, "--mode", "merge")
    assert "not seed 7" in refused(capsys, *words, "--seed", "7")
    assert "trained for one budget" in refused(capsys, *words, "--budget", "0.5")
    assert "not a workdir" in refused(capsys, "show", "--workdir", str(tmp_path))
    other = ["--config", CONFIG, "--config.meta.steps=7"]
    assert "meta.steps: 7 here, 6 in the workdir" in refused(capsys, *words, *other)
    assert "--config.meta.steps=7 changes a --config, which is not given" in refused(
        capsys, *words, other[-1]
    )


def test_the_notebook_runs_from_top_to_bottom(trained, tmp_path, capsys, monkeypatch):
    """Its cells in order, on a trained workdir, where train trains nothing."""
    root = Path(__file__).parents[2]
    cells = notebook.of_notebook(root / "launch/colab.ipynb")
    assert cells == notebook.of_script(root / "launch/colab.py")
    shutil.copytree(trained, tmp_path / "run")
    shown = []
    display = types.ModuleType("IPython.display")
    display.Markdown, display.display = str, shown.append
    display.Image = lambda filename: Path(filename).read_bytes()
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    monkeypatch.setattr(train, "write_pictures", lambda *_: "drawn during training")
    monkeypatch.chdir(root / "launch")
    mini = ModelSpec(SearchSpace("mini", 12, 2.0, 3, (6, 12), (1.0, 2.0), (1, 1), head_dim=4), 8, 4, 5)
    if not prance_jax.list_models("notebook_mini"):
        prance_jax.register_model("notebook_mini", lambda: mini)
    given = {"CONFIG": CONFIG, "WORKDIR": tmp_path / "run", "CHANGES": "--quiet", "MODEL": "notebook_mini"}
    for name, value in given.items():
        monkeypatch.setenv(f"PRANCE_{name}", str(value))
    names = {}
    for kind, text in cells:
        if kind == "code":
            exec(compile(text, "colab.ipynb", "exec"), names)
    assert "| PRANCE (prune) |" in shown[0] and len(shown) == 5
    assert all(picture.startswith(b"\x89PNG") for picture in shown[1:])
    out, errors = capsys.readouterr()
    assert "(2, 10) at " in out and "one budget: " in out and "continuing in" in errors
    assert (tmp_path / "run/metrics.jsonl").read_text() == (trained / "metrics.jsonl").read_text()
    page = (tmp_path / "run/report.html").read_text()
    assert "Your images" in page and page.count('alt="1.png, 17 tokens"') == 1


def test_a_workdir_of_another_config(trained, capsys):
    error = refused(capsys, "train", "--config", CONFIG, "--workdir", str(trained), "--config.meta.steps=7")
    assert "meta.steps: 7 here, 6 in the workdir" in error and "another --workdir" in error


def test_a_foreign_checkpoint_lists_paths(trained, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(trained, copy)
    shutil.rmtree(copy / "checkpoints/seed0/meta")
    shutil.copytree(copy / "checkpoints/seed0/prune/selector", copy / "checkpoints/seed0/meta")
    error = refused(capsys, "evaluate", "--workdir", str(copy), "--quiet")
    assert "seed0/meta" in error


def test_weights_of_a_workdir_with_their_card(trained, tmp_path, capsys):
    """Written and read bit-identical; a trained residual map has no place under timm's names: an error."""
    out = str(tmp_path / "out.safetensors")
    words = ["export", "--workdir", str(trained), "--out", out, "--licence", "apache-2.0"]
    assert run(capsys, *words, "--weights", "dense")[0] == 0
    config = Workdir(trained).config()
    experiment = Experiment(config, Workdir(trained), Progress(quiet=True), train=False)
    chex.assert_trees_all_equal(load_weights(out, experiment.spec("prune")), experiment.dense(0))
    card = read_card(out)
    assert card["licence"] == "apache-2.0" and card["search_space"]["widths"] == [4, 8]
    assert card["preprocessing"]["size"] == [20, 20] and len(card["preprocessing"]["mean"]) == 1
    assert card["measured"]["rows"][0]["method"] == "dense" and len(card["labels"]) == 10
    error = refused(capsys, *words, "--weights", "meta", "--structure", "4x2", "--names", "timm")
    assert "residual map differs from the identity in layer 0" in error
    assert "are for weights" in refused(capsys, *words[:4], "x.prance", "--names", "timm")


def test_the_benchmark_of_a_trained_workdir(trained, tmp_path, capsys):
    out = tmp_path / "speed"
    words = ["--repeats", "2", "--batches", "5", "--dtypes", "float32", "--out", str(out)]
    status, out_text, _ = run(capsys, "benchmark", "--workdir", str(trained), *words)
    assert status == 0 and "trained weights of" in out_text
    rows = {row["method"]: row for row in json.loads((out / "benchmark.json").read_text())["rows"]}
    table = {row["method"]: row for row in json.loads((trained / "results.json").read_text())["rows"]}
    assert rows["dense"]["top1"] == table["dense"]["top1"] and rows["masked"]["top1"] is None
    # Serving rounds up to buckets and computes the same decisions: few images may differ.
    assert abs(rows["adaptive"]["top1"] - table["prance_prune"]["top1"]) <= 2 / 50
    assert (out / "accuracy_speed.png").read_bytes().startswith(b"\x89PNG")


def test_a_profile_can_take_the_place_of_macs(trained, tmp_path, capsys):
    """The table of a trained workdir, and stage two rewarded by it."""
    table = tmp_path / "latency.json"
    words = ["--workdir", str(trained), "--out", str(table), "--batch", "4", "--repeats", "2"]
    status, out_text, _ = run(capsys, "profile", *words)
    assert status == 0 and "dense" in out_text and "group 1: widths" in out_text
    copy = tmp_path / "copy"
    for stage in ("dense", "meta"):
        shutil.copytree(trained / "checkpoints/seed0" / stage, copy / "checkpoints/seed0" / stage)
    reward = ["--config.selector.reward.cost=latency", f"--config.selector.latency_table={table}"]
    words = ["--config", CONFIG, "--workdir", str(copy), "--stage", "selector", "--quiet"]
    assert run(capsys, "train", *words, *reward)[0] == 0
    lines = [json.loads(line) for line in (copy / "metrics.jsonl").read_text().splitlines()]
    assert {line["stage"] for line in lines} == {"seed0/prune/selector"}
    assert all(line["cost"] > 0 and line["cost"] != line["macs_kept"] for line in lines)
    error = refused(capsys, "train", "--config", CONFIG, "--workdir", str(tmp_path / "w"), reward[0])
    assert "belong together" in error
    assert "give a trained --workdir, or a --config" in refused(capsys, "profile", "--out", str(table))


def test_the_benchmark_of_stage_one(trained, capsys):
    status, out, _ = run(capsys, "benchmark", "--measure", "meta", "--workdir", str(trained))
    figures = json.loads(out)
    assert status == 0 and figures["steps"] == 6
    assert list(figures["top1"]["seed0"]) == ["largest", "smallest", "random"]
    rows = json.loads((trained / "results.json").read_text())["rows"]
    assert figures["top1"]["seed0"]["largest"] == next(
        r["top1"] for r in rows if r["method"] == "meta_largest"
    )
    assert "needs a --workdir" in refused(capsys, "benchmark", "--measure", "meta")


def test_an_export_of_an_unknown_format_is_refused(trained, tmp_path, capsys):
    error = refused(capsys, "export", "--workdir", str(trained), "--out", str(tmp_path / "net.onnx"))
    assert "net.onnx is not a known format" in error and not list(tmp_path.iterdir())
