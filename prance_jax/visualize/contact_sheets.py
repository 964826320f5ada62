"""Draws contact sheets: tokens kept in each image, and the easiest beside the hardest images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from prance_jax.spec.search_space import SearchSpace
from prance_jax.visualize.charts import BLUE, ORANGE, RED
from prance_jax.visualize.panels import ImagePanel

# Pixels: between images, above and below an image, above the sheet; and pixels per inch.
_GAP, _HEAD, _FOOT, _TITLE, _DPI = 12, 30, 26, 64, 100
_GREY = "#5b6470"


def kept_sheet(images: Sequence[ImagePanel], space: SearchSpace, title: str, columns: int = 2) -> Any:
    """Draws the remaining tokens of each image, its widths, MLP ratios and MACs.

    Args:
      images: at least one.
      space: search space of the network.
      title: text above the sheet.
      columns: images side by side.

    Returns:
      A matplotlib figure.
    """
    side = images[0].panels[0].shape[0]
    num_panels = len(images[0].panels)
    bars_width = max(170, 26 * space.depth)
    cell_width = num_panels * (side + _GAP) + bars_width + 4 * _GAP
    cell_height = _HEAD + side + _FOOT + 2 * _GAP
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    figure, axes = _canvas(columns * cell_width + 2 * _GAP, rows * cell_height + _TITLE, title)
    for index, image in enumerate(images):
        left = 2 * _GAP + (index % columns) * cell_width
        top = _TITLE + (index // columns) * cell_height
        axes.text(left, top + 18, image.caption, fontsize=11, weight="bold", color=_caption_colour(image))
        right = left + num_panels * (side + _GAP) + bars_width
        axes.text(right, top + 18, f"{image.macs_kept:.1%} of the MACs", fontsize=11, ha="right", color=BLUE)
        for panel, (pixels, tokens) in enumerate(zip(image.panels, image.tokens)):
            start, below = left + panel * (side + _GAP), top + _HEAD
            axes.imshow(pixels, extent=(start, start + side, below + side, below), interpolation="nearest")
            words = f"{tokens} tokens" if panel == 0 else f"decision {panel}: {tokens} tokens"
            axes.text(start, below + side + 17, words, fontsize=8.5, color=_GREY)
        _bars(axes, image, space, left + num_panels * (side + _GAP), top + _HEAD, bars_width, side)
    return figure


def easiest_hardest_sheet(
    easy: Sequence[ImagePanel], hard: Sequence[ImagePanel], title: str, columns: int = 8
) -> Any:
    """Draws the images with the fewest and the most MACs, with prediction and label.

    Args:
      easy: images with the fewest MACs.
      hard: images with the most MACs.
      title: text above the sheet.
      columns: images side by side.

    Returns:
      A matplotlib figure.
    """
    side = easy[0].panels[0].shape[0]
    columns = min(columns, max(len(easy), len(hard)))
    cell_height = side + 58
    rows = [-(-len(part) // columns) for part in (easy, hard)]
    width = columns * (side + _GAP) + 3 * _GAP
    figure, axes = _canvas(width, _TITLE + sum(rows) * cell_height + 2 * 36, title)
    top = _TITLE
    for part, num_rows, head in zip((easy, hard), rows, ("fewest MACs", "most MACs")):
        axes.text(2 * _GAP, top + 14, head, fontsize=13, weight="bold")
        top += 36
        for index, image in enumerate(part):
            left = 2 * _GAP + index % columns * (side + _GAP)
            above = top + index // columns * cell_height
            extent = (left, left + side, above + side, above)
            axes.imshow(image.panels[0], extent=extent, interpolation="nearest")
            below = above + side
            axes.text(left, below + 17, image.caption, fontsize=9.5, color=_caption_colour(image))
            axes.text(left, below + 34, f"{image.macs_kept:.1%} of the MACs", fontsize=8.5, color=_GREY)
        top += num_rows * cell_height
    return figure


def _caption_colour(image: ImagePanel) -> str:
    return RED if image.is_wrong else "black"


def _bars(
    axes: Any, image: ImagePanel, space: SearchSpace, left: float, top: float, width: float, height: float
) -> None:
    """Draws two bars per layer, width and MLP ratio as shares of the largest, and a line at each decision."""
    step, half = (width - _GAP) / space.depth, height / 2
    for part, (values, largest, colour, name) in enumerate(
        (
            (image.widths, space.max_width, BLUE, "embedding width"),
            (image.ratios, space.ratios[-1], ORANGE, "MLP ratio"),
        )
    ):
        start = top + part * half
        base, full = start + half - 14, half - 34
        axes.text(left + _GAP, start + 10 + 4 * part, name, fontsize=8, color=_GREY)
        xs = [left + _GAP + step * (layer + 0.5) for layer in range(space.depth)]
        axes.bar(xs, [-full] * len(xs), 0.74 * step, bottom=base, color="#eceff3")
        axes.bar(xs, [-full * value / largest for value in values], 0.74 * step, bottom=base, color=colour)
        for x, value in zip(xs, values):
            axes.text(x, base + 10, f"{value:.3g}", fontsize=7, ha="center", color=_GREY)
        for layer in space.first_layers[1:]:
            axes.plot([left + _GAP + step * layer] * 2, [base, base - full], color=_GREY, linewidth=0.8)


def _canvas(width: float, height: float, title: str) -> tuple[Any, Any]:
    """Makes a figure with one pair of axes over all of it, in pixels from the upper left corner."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.text(2 * _GAP, 34, title, fontsize=14)
    axes.set(xlim=(0, width), ylim=(height, 0), autoscale_on=False, aspect="equal")
    return figure, axes
