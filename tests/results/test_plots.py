"""The pictures: one point per method, budgets of one selector on a line, unmeasured speeds left out."""

import matplotlib
import pytest

from prance_jax.results.comparison_plot import curves, plot_comparison, ticks
from prance_jax.results.plots import _caption, _families, _point, plot_results, plot_speed
from prance_jax.results.rows import Results, Row, Speed


def row(method, seed=0, top1=0.9, kept=0.5, speed=100.0):
    return Row(method, seed, top1=top1, macs_kept=kept, images_per_s=speed)


ROWS = (
    row("dense", kept=1.0),
    row("random_policy", speed=None),
    row("prance_prune_30", 0, 0.90, 0.30),
    row("prance_prune_30", 1, 0.94, 0.34),
    row("prance_prune_75", 0, 0.95, 0.75),
)


def test_budgets_are_one_family():
    families = _families(ROWS)
    assert list(families) == ["dense", "random_policy", "prance_prune"]
    low, high = families["prance_prune"][1]
    assert _point(low, "macs_kept", 100) == pytest.approx((32, 92, 2 * 2**0.5, 2 * 2**0.5))
    assert _point(high, "macs_kept", 100) == pytest.approx((75, 95, 0, 0))


def test_the_caption_explains_the_baselines():
    assert _caption(ROWS) == "Random policy: decisions drawn at random, at the same mean MACs."
    assert _caption((row("best_static_merge"),)) == (
        "Best static structure: one structure for all images, found by search."
    )
    assert _caption((row("dense"), row("tome_30"))) == ""


def test_the_picture(tmp_path):
    plot_results(Results(ROWS, 50, "a machine", "a command", 1.0), tmp_path / "accuracy.png")
    pixels = matplotlib.image.imread(tmp_path / "accuracy.png")
    assert pixels.shape[0] > 500 and pixels.shape[1] > 1000
    # The colours of PRANCE, the dense network and the random policy.
    for colour in ((0xD5, 0x5E, 0x00), (0, 0, 0), (0xE6, 0x9F, 0x00)):
        assert (abs(pixels[:, :, :3] * 255 - colour).max(axis=2) < 1).any()


COMPARISON = (
    row("dense", top1=0.97, kept=1.0),
    row("dense_tuned", top1=0.98, kept=1.0),
    row("tome_50", 0, 0.90, 0.50),
    row("tome_50", 1, 0.94, 0.48),
    row("tome_35", 0, 0.80, 0.35),
    row("tome_tuned_50", 0, 1.00, 0.50),
    row("spvit_free_35", 0, 0.95, 0.31, speed=None),
    row("prance_prune_35", 0, 0.97, 0.35),
)


def test_a_curve_for_every_method():
    plain, tuned = curves(COMPARISON, False), curves(COMPARISON, True)
    assert list(plain) == ["tome"] and list(tuned) == ["tome", "spvit_free", "prance_prune"]
    assert plain["tome"] == [pytest.approx((35, 80, 0, 100)), pytest.approx((49, 92, 2 * 2**0.5, 100))]
    assert tuned["spvit_free"][0].speed is None


def test_marks_of_an_axis_of_errors():
    assert ticks(58, 97.6) == [60, 70, 80, 85, 90, 92, 94, 95, 96, 97]
    assert ticks(69.4, 75.2) == [70, 71, 72, 73, 74, 75]
    assert ticks(94.9, 98.1) == [95, 96, 97, 98]
    assert ticks(97.31, 97.42) == [97.32, 97.34, 97.36, 97.38, 97.4, 97.42]


def test_the_picture_of_the_comparison(tmp_path):
    """It is drawn of many methods, with an accuracy of 100 %, a missing speed, and without fine-tuned rows."""
    many = (*COMPARISON, *(row(f"method{i}_tuned_50", top1=0.9 + i / 300) for i in range(15)))
    untuned = tuple(row for row in COMPARISON if "tuned" not in row.method)
    plot_comparison(Results(untuned, 50, "a machine", "a command", 1.0), tmp_path / "comparison.png")
    plot_comparison(Results(many, 50, "a machine", "a command", 1.0), tmp_path / "comparison.png")
    pixels = matplotlib.image.imread(tmp_path / "comparison.png")
    assert pixels.shape[0] > 500 and pixels.shape[1] > 1500
    assert (abs(pixels[:, :, :3] * 255 - (0xD5, 0x5E, 0x00)).max(axis=2) < 1).any()


def test_the_picture_of_speeds(tmp_path):
    rows = [
        Speed(method, batch, "float32", 900.0, 1.0, 0.5, 1.5, 0.75, (0.9 * batch, 1.1 * batch), None, top1)
        for batch in (1, 8)
        for method, top1 in (("dense", 0.97), ("adaptive", 0.98), ("tome", 0.9), ("masked", None))
    ]
    plot_speed(rows, tmp_path / "speed.png", "weights")
    assert (tmp_path / "speed.png").read_bytes().startswith(b"\x89PNG")
