"""Draws contact sheets: tokens kept in each image, and the easiest beside the hardest images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from prance_jax.spec.search_space import SearchSpace
from prance_jax.visualize.charts import BLUE, ORANGE, RED
from prance_jax.visualize.panels import ExitPanel, ImagePanel

GAP, TITLE = 12, 64
"""Pixels between images, and above the sheet."""
_HEAD, _FOOT, _DPI = 30, 26, 100  # pixels above and below an image; pixels per inch
SOFT = "#5b6470"
"""Colour of small print."""


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
    cell_width = num_panels * (side + GAP) + bars_width + 4 * GAP
    cell_height = _HEAD + side + _FOOT + 2 * GAP
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    figure, axes = new_canvas(columns * cell_width + 2 * GAP, rows * cell_height + TITLE, title)
    for index, image in enumerate(images):
        left = 2 * GAP + (index % columns) * cell_width
        top = TITLE + (index // columns) * cell_height
        axes.text(left, top + 18, image.caption, fontsize=11, weight="bold", color=caption_colour(image))
        right = left + num_panels * (side + GAP) + bars_width
        axes.text(right, top + 18, f"{image.macs_kept:.1%} of the MACs", fontsize=11, ha="right", color=BLUE)
        for panel, (pixels, tokens) in enumerate(zip(image.panels, image.tokens)):
            start, below = left + panel * (side + GAP), top + _HEAD
            draw_pixels(axes, pixels, start, below)
            words = f"{tokens} tokens" if panel == 0 else f"decision {panel}: {tokens} tokens"
            axes.text(start, below + side + 17, words, fontsize=8.5, color=SOFT)
        _bars(axes, image, space, left + num_panels * (side + GAP), top + _HEAD, bars_width, side)
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
    width = columns * (side + GAP) + 3 * GAP
    figure, axes = new_canvas(width, TITLE + sum(rows) * cell_height + 2 * 36, title)
    top = TITLE
    for part, num_rows, head in zip((easy, hard), rows, ("fewest MACs", "most MACs")):
        axes.text(2 * GAP, top + 14, head, fontsize=13, weight="bold")
        top += 36
        for index, image in enumerate(part):
            left = 2 * GAP + index % columns * (side + GAP)
            above = top + index // columns * cell_height
            draw_pixels(axes, image.panels[0], left, above)
            below = above + side
            axes.text(left, below + 17, image.caption, fontsize=9.5, color=caption_colour(image))
            axes.text(left, below + 34, f"{image.macs_kept:.1%} of the MACs", fontsize=8.5, color=SOFT)
        top += num_rows * cell_height
    return figure


def caption_colour(image: ImagePanel | ExitPanel) -> str:
    """Returns the colour of an image's caption: red where the prediction is wrong."""
    return RED if image.is_wrong else "black"


def _bars(
    axes: Any, image: ImagePanel, space: SearchSpace, left: float, top: float, width: float, height: float
) -> None:
    """Draws two bars per layer, width and MLP ratio as shares of the largest, and a line at each decision."""
    step, half = (width - GAP) / space.depth, height / 2
    for part, (values, largest, colour, name) in enumerate(
        (
            (image.widths, space.max_width, BLUE, "embedding width"),
            (image.ratios, space.ratios[-1], ORANGE, "MLP ratio"),
        )
    ):
        start = top + part * half
        base, full = start + half - 14, half - 34
        axes.text(left + GAP, start + 10 + 4 * part, name, fontsize=8, color=SOFT)
        xs = [left + GAP + step * (layer + 0.5) for layer in range(space.depth)]
        axes.bar(xs, [-full] * len(xs), 0.74 * step, bottom=base, color="#eceff3")
        axes.bar(xs, [-full * value / largest for value in values], 0.74 * step, bottom=base, color=colour)
        for x, value in zip(xs, values):
            axes.text(x, base + 10, f"{value:.3g}", fontsize=7, ha="center", color=SOFT)
        for layer in space.first_layers[1:]:
            axes.plot([left + GAP + step * layer] * 2, [base, base - full], color=SOFT, linewidth=0.8)


def new_canvas(width: float, height: float, title: str) -> tuple[Any, Any]:
    """Makes a figure with one pair of axes over all of it, in pixels from the upper left corner.

    Args:
      width: pixels.
      height: pixels.
      title: text above the sheet.

    Returns:
      A matplotlib figure and its axes.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.text(2 * GAP, 34, title, fontsize=14)
    axes.set(xlim=(0, width), ylim=(height, 0), autoscale_on=False, aspect="equal")
    return figure, axes


def draw_pixels(axes: Any, pixels: np.ndarray, left: float, top: float) -> None:
    """Draws an image on a sheet, at its own size.

    Args:
      axes: of the sheet.
      pixels: RGB uint8 [H, W, 3].
      left: where it begins, pixels from the left edge.
      top: where it begins, pixels from the upper edge.
    """
    height, width = pixels.shape[:2]
    axes.imshow(pixels, extent=(left, left + width, top + height, top), interpolation="nearest")
