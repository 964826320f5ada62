"""Charts of known decisions: which classes are shown, and the numbers in curves and histograms."""

import numpy as np
import pytest
from small import SPACE

from prance_jax.visualize import charts
from prance_jax.visualize.learning_curves import plot_learning
from prance_jax.visualize.trace import Trace


def make_trace(images: int) -> Trace:
    """The largest structure; even images keep half of the tokens at every decision, odd ones all."""
    keep = np.where(np.arange(images) % 2, 1.0, 0.5)[:, None, None].repeat(3, axis=1)
    wide = np.full((images, SPACE.depth), 28)
    return Trace(np.zeros(images, int), np.linspace(0.2, 0.8, images), wide, 2 * wide, keep, wide, wide)


def test_of_many_classes_those_with_the_fewest_and_the_most_macs_are_shown():
    labels = np.arange(1000) // 10
    selected = charts._select_classes(make_trace(1000).macs_kept, labels, 100)
    assert selected == [*range(10), *range(90, 100)]
    assert charts._select_classes(make_trace(30).macs_kept, np.arange(30) % 3 + 1, 5) == [1, 2, 3]


def test_histograms_add_up():
    """Numbers in the panels, counted by hand; widths and ratios are one choice."""
    labels = np.array([0, 0, 1, 0, 1, 0, 1])
    figure = charts.plot_decisions(make_trace(7), labels, ("a", "b"), SPACE, {"prune": (0.5, 1.0)})
    keep, widths, ratios = figure.axes[0], figure.axes[3], figure.axes[6]
    labels_at = {(text.get_position()): text.get_text() for text in keep.texts}
    # Rows: all, class 0 (images 0, 1, 3, 5), class 1 (images 2, 4, 6).
    assert labels_at == {(0, 0): "57", (1, 0): "43", (0, 1): "25", (1, 1): "75", (0, 2): "100"}
    assert [(text.get_position(), text.get_text()) for text in widths.texts] == [
        ((2, row), "100") for row in range(3)
    ]
    assert [(text.get_position(), text.get_text()) for text in ratios.texts] == [
        ((1, row), "100") for row in range(3)
    ]


def test_curves_are_the_lines_of_each_stage():
    assert plot_learning([]) is None
    lines = [
        {
            "stage": f"seed{seed}/{stage}",
            "step": step,
            "accuracy": 0.1 * step + seed,
            "loss": 1 / step,
            "reward": -1,
        }
        for seed in (0, 1)
        for stage in ("meta", "prune/finetune", "merge/finetune")
        for step in (1, 2, 3)
    ]
    figure = plot_learning(lines)
    assert len(figure.axes) == 4
    meta = figure.axes[0].lines
    assert [list(line.get_ydata()) for line in meta] == [
        pytest.approx([10, 20, 30]),
        pytest.approx([110, 120, 130]),
    ]
    words = [text.get_text() for text in figure.axes[2].get_legend().get_texts()]
    assert words == ["accuracy, prune", "accuracy, merge"]


def test_a_selector_without_accuracy_shows_its_entropy():
    lines = [
        {"stage": "seed0/cascade/selector_0", "step": step, "entropy": 1 / step, "reward": 0.1, "return": 0.2}
        for step in (1, 2, 4)
    ]
    left, right = plot_learning(lines).axes
    assert (
        list(left.lines[0].get_ydata()) == [1, 0.5, 0.25] and left.get_ylabel() == "entropy of the decisions"
    )
    assert list(right.lines[0].get_ydata()) == [0.1] * 3
