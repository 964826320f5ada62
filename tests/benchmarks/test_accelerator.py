"""The suite of an accelerator: time limits, failures and a second call by hand; every part runs with a tiny network."""

import json
import math
from pathlib import Path

import pytest
from commands.command_line import refused, run

from prance_jax.benchmarks.accelerator import recipe
from prance_jax.benchmarks.accelerator.parts import full_suite, suite_parts
from prance_jax.benchmarks.accelerator.suite import Measurement, Part, run_suite
from prance_jax.config.experiment import Config
from prance_jax.config.io import load_config

TESTS = Path(__file__).parents[1]
HEADER = {"hardware": "a device", "command": "benchmark"}


class Clock:
    """Seconds that pass only in measurements."""

    def __init__(self):
        self.now, self.calls = 0.0, []

    def __call__(self) -> float:
        return self.now

    def measurement(self, name: str, seconds: float, figures=None) -> Measurement:
        def measure(left: float) -> dict:
            self.calls.append((name, left))
            self.now += seconds
            if figures is None:
                raise ValueError("out of memory")
            return figures

        return Measurement(name, measure)


def parts_of(clock: Clock, broken=None) -> list[Part]:
    first = [clock.measurement("a", 30, {"value": 1.0}), clock.measurement("b", 40, broken)]
    second = [clock.measurement("c", 50, {"value": 3.0, "rows": [1, 2]}), clock.measurement("d", 1, {})]
    return [Part("one", "First", 0.6, first), Part("two", "Second", 0.4, second)]


def test_limits_failures_and_a_second_call(tmp_path):
    """By hand: 100 s; part one may begin until 60 s, part two until 100 s."""
    clock, shown = Clock(), []
    records = run_suite(parts_of(clock), 100, tmp_path, HEADER, shown.append, clock)
    assert clock.calls == [("a", 60), ("b", 30), ("c", 30)]  # d would begin at 120 s
    assert records["one"] == {
        "a": {"value": 1.0, "seconds": 30},
        "b": {"error": "ValueError: out of memory", "seconds": 40},
    }
    assert list(records["two"]) == ["c"] and any("d: no time left" in text for text in shown)
    stored = json.loads((tmp_path / "one.json").read_text())
    assert stored["figures"] == records["one"] and stored["hardware"] == "a device"
    assert "out of memory" in (tmp_path / "one_error.txt").read_text()
    summary = (tmp_path / "summary.md").read_text()
    assert "- a: value 1, seconds 30" in summary and "rows" not in summary

    # A second call measures what failed and what had no time.
    clock = Clock()
    records = run_suite(parts_of(clock, {"value": 2.0}), 100, tmp_path, HEADER, shown.append, clock)
    assert [name for name, _ in clock.calls] == ["b", "d"]
    assert list(records["one"]) == ["a", "b"] and records["two"]["c"]["value"] == 3.0

    # Figures of another device do not count, nor does a torn file.
    clock = Clock()
    (tmp_path / "two.json").write_text('{"hardware": "a dev')
    other = {**HEADER, "hardware": "another device"}
    run_suite(parts_of(clock, {}), 1000, tmp_path, other, shown.append, clock)
    assert [name for name, _ in clock.calls] == ["a", "b", "c", "d"]


def test_every_part_runs(tmp_path, capsys):
    """Executions agree, the table has all parts, and a share of what a device can compute is a positive number.

    There is time for all steps of the training.
    """
    words = ("benchmark", "--suite", "accelerator", "--rehearse", "--minutes", "9999", "--out", str(tmp_path))
    config = (
        "--config",
        str(TESTS / "tiny_cascade.py"),
        "--config.cascade.peers=()",
        "--config.cascade.methods=()",
    )
    status, text, _ = run(capsys, *words, *config)
    assert status == 0 and "summary.md" in text
    summary = json.loads((tmp_path / "summary.json").read_text())
    parts = ("check", "dense", "cascade", "serving", "selector")
    figures = {part: summary[part] for part in parts}
    assert not [name for part in figures.values() for name, values in part.items() if "error" in values]
    assert set(figures["check"]) == {"float32", "bfloat16"}
    assert all(values["passed"] for values in figures["check"].values())
    assert figures["check"]["float32"]["executor"] < 1e-5
    for name in ("rehearsal forward", "rehearsal training step"):
        assert 0 < figures["dense"][name]["mfu"] < math.inf and figures["dense"][name]["images_per_s"] > 0
    assert len(figures["cascade"]) == len(figures["serving"]) == 2
    (training,) = summary["training"].values()
    assert training["steps_share"] == 1.0 and (tmp_path / "training_0/results.json").exists()
    assert training["rows"]["dense"]["macs_kept"] == 1.0
    assert {"dense_tuned", "confidence_50", "prance_cascade_50", "oracle_50"} <= set(training["rows"])


def test_a_training_is_cut_to_the_time(tmp_path, monkeypatch):
    """By hand: steps of 8 images of 1 s. Dense 6, meta 6 x 2.1, finetune 6 x 1.6 x 2, compare 2 x 1.1: 40 s."""
    config = load_config(TESTS / "tiny_cascade.py", Config)
    monkeypatch.setattr(recipe, "_dense_seconds", lambda config, repeats: 1.0)
    shares = []

    def shortened(config, share):
        shares.append(share)
        raise KeyboardInterrupt

    monkeypatch.setattr(recipe, "shortened", shortened)
    with pytest.raises(KeyboardInterrupt):
        recipe.train_within(config, 40, tmp_path)
    assert shares == [pytest.approx(0.5, rel=0.01)]
    with pytest.raises(recipe.UserError, match="give more --minutes"):
        recipe.train_within(config, 0.5, tmp_path)


def test_a_shortened_config(tmp_path):
    config = load_config(TESTS / "tiny_cascade.py", Config)
    short = recipe.shortened(config, 0.5)
    assert (short.dense.steps, short.meta.steps, short.finetune.steps, short.compare.finetune.steps) == (
        3,
        3,
        3,
        1,
    )
    assert short.dense.optimizer.warmup == 1 and short.cascade == config.cascade


def test_without_time_the_full_suite_lists_what_it_would_measure(tmp_path):
    """Its networks are those of the paper at 224 pixels; nothing is measured."""
    shown, suite = [], full_suite(tmp_path, None)
    assert [spec.space.name for spec in suite.networks.values()] == ["tiny", "small", "base"]
    assert {spec.image_shape for spec in suite.networks.values()} == {(224, 224, 3)}
    clock = iter(range(1000))
    records = run_suite(suite_parts(suite), 0, tmp_path, HEADER, shown.append, lambda: next(clock))
    assert not any(records.values())
    assert all(
        f"  tiny batch 1024, chunk {1024 // share}: no time left" in "\n".join(shown) for share in (4, 16)
    )
    assert (tmp_path / "summary.md").read_text().count("Not measured.") == 5


def test_a_wrong_time_limit(capsys):
    words = ("benchmark", "--suite", "accelerator", "--minutes", "-1")
    assert "--minutes -1 must be above 0" in refused(capsys, *words)
