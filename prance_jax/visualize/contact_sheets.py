"""Sheets of pictures: what was kept of each image, and the easiest beside the hardest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from prance_jax.spec.search_space import SearchSpace
from prance_jax.visualize.charts import BLUE, ORANGE, RED
from prance_jax.visualize.panels import ImagePanel

_GAP, _HEAD, _FOOT, _TITLE, _DPI = 12, 30, 26, 64, 100
_GREY = "#5b6470"


def kept_sheet(images: Sequence[ImagePanel], space: SearchSpace, title: str, columns: int = 2) -> Any:
    """A figure: of each image what was left after every decision, and the widths, MLP ratios and MACs that it was given."""
    side = images[0].panels[0].shape[0]
    panels = len(images[0].panels)
    bars = max(170, 26 * space.depth)
    wide = panels * (side + _GAP) + bars + 4 * _GAP
    tall = _HEAD + side + _FOOT + 2 * _GAP
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    figure, axes = _canvas(columns * wide + 2 * _GAP, rows * tall + _TITLE, title)
    for index, one in enumerate(images):
        left, top = 2 * _GAP + (index % columns) * wide, _TITLE + (index // columns) * tall
        axes.text(
            left, top + 18, one.verdict, fontsize=11, weight="bold", color=RED if one.wrong else "black"
        )
        right = left + panels * (side + _GAP) + bars
        axes.text(right, top + 18, f"{one.macs_kept:.1%} of the MACs", fontsize=11, ha="right", color=BLUE)
        for panel, (pixels, tokens) in enumerate(zip(one.panels, one.tokens)):
            start, below = left + panel * (side + _GAP), top + _HEAD
            axes.imshow(pixels, extent=(start, start + side, below + side, below), interpolation="nearest")
            what = f"{tokens} tokens" if panel == 0 else f"decision {panel}: {tokens} left"
            axes.text(start, below + side + 17, what, fontsize=8.5, color=_GREY)
        _bars(axes, one, space, left + panels * (side + _GAP), top + _HEAD, bars, side)
    return figure


def ends_sheet(easy: Sequence[ImagePanel], hard: Sequence[ImagePanel], title: str, columns: int = 8) -> Any:
    """A figure of the images that were given the fewest and the most MACs, with prediction and label."""
    side = easy[0].panels[0].shape[0]
    columns = min(columns, max(len(easy), len(hard)))
    tall = side + 58
    rows = [-(-len(part) // columns) for part in (easy, hard)]
    width = columns * (side + _GAP) + 3 * _GAP
    figure, axes = _canvas(width, _TITLE + sum(rows) * tall + 2 * 36, title)
    top = _TITLE
    for part, count, head in zip((easy, hard), rows, ("fewest MACs", "most MACs")):
        axes.text(2 * _GAP, top + 14, head, fontsize=13, weight="bold")
        top += 36
        for index, one in enumerate(part):
            left, above = 2 * _GAP + index % columns * (side + _GAP), top + index // columns * tall
            axes.imshow(
                one.panels[0], extent=(left, left + side, above + side, above), interpolation="nearest"
            )
            colour = RED if one.wrong else "black"
            axes.text(left, above + side + 17, one.verdict, fontsize=9.5, color=colour)
            axes.text(left, above + side + 34, f"{one.macs_kept:.1%} of the MACs", fontsize=8.5, color=_GREY)
        top += count * tall
    return figure


def _bars(
    axes: Any, one: ImagePanel, space: SearchSpace, left: float, top: float, wide: float, tall: float
) -> None:
    """Two bars a layer, embedding width and MLP ratio, as shares of the widest; a line before each decision."""
    step, half = (wide - _GAP) / space.depth, tall / 2
    for part, (values, most, colour, name) in enumerate(
        (
            (one.widths, space.max_width, BLUE, "embedding width"),
            (one.ratios, space.ratios[-1], ORANGE, "MLP ratio"),
        )
    ):
        start = top + part * half
        base, full = start + half - 14, half - 34
        axes.text(left + _GAP, start + 10 + 4 * part, name, fontsize=8, color=_GREY)
        xs = [left + _GAP + step * (layer + 0.5) for layer in range(space.depth)]
        axes.bar(xs, [-full] * len(xs), 0.74 * step, bottom=base, color="#eceff3")
        axes.bar(xs, [-full * value / most for value in values], 0.74 * step, bottom=base, color=colour)
        for x, value in zip(xs, values):
            axes.text(x, base + 10, f"{value:.3g}", fontsize=7, ha="center", color=_GREY)
        for layer in space.first_layers[1:]:
            axes.plot([left + _GAP + step * layer] * 2, [base, base - full], color=_GREY, linewidth=0.8)


def _canvas(width: float, height: float, title: str) -> tuple[Any, Any]:
    """A figure with one pair of axes over all of it, in pixels from the upper left corner."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.text(2 * _GAP, 34, title, fontsize=14)
    axes.set(xlim=(0, width), ylim=(height, 0), autoscale_on=False, aspect="equal")
    return figure, axes
