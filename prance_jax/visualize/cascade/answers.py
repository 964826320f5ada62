"""The answers of a cascade on the way to where an image stopped, as panels and as a contact sheet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from prance_jax.cascade.observation import LARGEST_PROBABILITY
from prance_jax.cascade.table import CascadeTable
from prance_jax.spec.cascade import Cascade
from prance_jax.visualize.contact_sheets import GAP, SOFT, TITLE, caption_colour, draw_pixels, new_canvas
from prance_jax.visualize.panels import ExitAnswer, ExitPanel
from prance_jax.visualize.patches import enlarge

_LINE, _CAPTION, _HEAD = 19, 42, 36  # pixels: an answer, caption and MACs, heading of a part
_PALE, _TRACK = "#9ecae1", "#eceff3"


def make_exit_panels(
    images: np.ndarray,
    cascade: Cascade,
    table: CascadeTable,
    index: np.ndarray,
    node: np.ndarray,
    classes: Sequence[str],
    names: Sequence[str],
    with_labels: bool = True,
) -> list[ExitPanel]:
    """Collects the answers for some images.

    Args:
      images: float [K, S, S, channels] in [0, 1].
      cascade: the tree.
      table: answers for N images, these among them.
      index: int [K], rows of the table.
      node: int [K], where the images stopped.
      classes: names of the classes.
      names: name per image.
      with_labels: whether the labels of the table are those of the images.
    """
    predicted, cost, labels = (np.asarray(field) for field in (table.predicted, table.cost, table.labels))
    confidence, panels = np.asarray(table.features)[..., LARGEST_PROBABILITY], []
    for image, row, stop, name in zip(images, index, node, names, strict=True):
        answers = []
        for number in cascade.path(int(stop)):
            step = cascade.steps[number - 1]
            answer = classes[predicted[row, number]], float(confidence[row, number])
            answers.append(ExitAnswer(step.look, step.last_group, *answer))
        label = classes[labels[row]] if with_labels else None
        panels.append(ExitPanel(name, enlarge(image), tuple(answers), float(cost[stop]), label))
    return panels


def easiest_and_hardest(table: CascadeTable, node: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Selects the images with the fewest and with the most MACs; no image is in both.

    Many images stop at the same node. Of these, the easiest are those whose last answer has the largest
    probability, the hardest those with the smallest.

    Args:
      table: answers for N images.
      node: int [N], where they stopped.
      count: images in each of the two; at most half of all.

    Returns:
      Rows of the fewest MACs, and of the most, the extreme ones first.
    """
    confidence = np.asarray(table.features)[np.arange(len(node)), node, LARGEST_PROBABILITY]
    order = np.lexsort((-confidence, np.asarray(table.cost)[node]))
    count = min(count, len(order) // 2)
    return order[:count], order[::-1][:count]


def answer_sheet(parts: Sequence[tuple[str, Sequence[ExitPanel]]], title: str, columns: int = 6) -> Any:
    """Draws images with their answers, a line per exit with a bar as long as the probability.

    Args:
      parts: heading and images of each part of the sheet.
      title: text above the sheet.
      columns: images side by side.

    Returns:
      A matplotlib figure.
    """
    side = parts[0][1][0].pixels.shape[0]
    rows = [-(-len(images) // columns) for _, images in parts]
    most_answers = [max(len(image.answers) for image in images) for _, images in parts]
    cell_heights = [side + _CAPTION + _LINE * most + 2 * GAP for most in most_answers]
    height = TITLE + len(parts) * _HEAD + float(np.dot(rows, cell_heights))
    figure, axes = new_canvas(columns * (side + GAP) + 3 * GAP, height, title)
    top = TITLE
    for (heading, images), num_rows, cell_height in zip(parts, rows, cell_heights):
        axes.text(2 * GAP, top + 14, heading, fontsize=13, weight="bold")
        top += _HEAD
        for number, image in enumerate(images):
            left = 2 * GAP + number % columns * (side + GAP)
            _draw_image(axes, image, left, top + number // columns * cell_height, side)
        top += num_rows * cell_height
    return figure


def _draw_image(axes: Any, image: ExitPanel, left: float, top: float, side: float) -> None:
    from matplotlib.patches import Rectangle

    draw_pixels(axes, image.pixels, left, top)
    below = top + side
    axes.text(left, below + 17, _short(image.caption, 22), fontsize=9.5, color=caption_colour(image))
    axes.text(left, below + 34, f"{image.macs_kept:.1%} of the MACs", fontsize=8.5, color=SOFT)
    for number, answer in enumerate(image.answers):
        start = below + _CAPTION + _LINE * number
        for width, colour in ((side, _TRACK), (side * answer.probability, _PALE)):
            axes.add_patch(Rectangle((left, start), width, _LINE - 3, color=colour, linewidth=0))
        axes.text(left + 4, start + 12, answer.exit_name, fontsize=7.5, color=SOFT)
        words = f"{_short(answer.predicted, 8)}, {answer.probability:.0%}"
        axes.text(left + side - 4, start + 12, words, fontsize=7.5, ha="right")


def _short(name: str, length: int) -> str:
    return name if len(name) <= length else name[: length - 1] + "…"
