"""Draws charts of a cascade: MACs of each image, and where images stop and how often they are right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from prance_jax.results.rows import ExitShare
from prance_jax.visualize.charts import BLUE, RED, new_figure, remove_frame


def plot_image_macs(rows: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> Any:
    """Draws how many images use how many MACs, a panel per row of the table.

    Args:
      rows: name of the row -> MACs of each image, share of the dense MACs, float [N]; and whether it is
        classified correctly, bool [N].

    Returns:
      A matplotlib figure.
    """
    columns = 2 if len(rows) == 4 else min(3, len(rows))
    lines = -(-len(rows) // columns)
    figure = new_figure(max(5.0, 3.6 * columns), 3.2 * lines)
    panels = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
    highest = max(cost.max() for cost, _ in rows.values())
    edges = np.linspace(0, 100 * max(highest, 1.0) + 2.5, 42)
    for panel, (name, (cost, is_right)) in zip(panels.flat, rows.items()):
        share = 100 * cost
        parts = [share[is_right], share[~is_right]]
        panel.hist(parts, edges, stacked=True, color=(BLUE, RED), label=("right", "wrong"))
        panel.axvline(share.mean(), color="black", linewidth=1, linestyle="--", label="mean")
        panel.set_title(f"{name}: mean {share.mean():.1f} %", fontsize=10)
        remove_frame(panel)
    for panel in panels.flat[len(rows) :]:
        panel.set_visible(False)
    for panel in panels[:, 0]:
        panel.set_ylabel("images")
    handles = panels[0, 0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside upper center", ncols=3, frameon=False)
    figure.supxlabel("MACs spent, % of the dense network", fontsize=10)
    return figure


def plot_exits(exits: Mapping[str, Sequence[ExitShare]]) -> Any:
    """Draws which share of the images stops at each exit, and their accuracy; a bar per row of the table.

    Args:
      exits: name of the row -> where images stopped.

    Returns:
      A matplotlib figure.
    """
    from matplotlib import colormaps

    positions = sorted({(part.look, part.group) for parts in exits.values() for part in parts})
    figure = new_figure(max(9.0, 2.4 + 0.55 * len(positions) * len(exits)), 4.8)
    panels = figure.subplots(2, 1, sharex=True)
    width = 0.84 / len(exits)
    colours = colormaps["Blues"](np.linspace(0.4, 0.95, len(exits)))
    for number, (name, parts) in enumerate(exits.items()):
        shares = {(part.look, part.group): part for part in parts}
        xs = [index + width * (number - (len(exits) - 1) / 2) for index in range(len(positions))]
        for panel, field in zip(panels, ("share", "top1")):
            for x, position in zip(xs, positions):
                if position in shares:
                    height = 100 * getattr(shares[position], field)
                    panel.bar(x, height, 0.94 * width, color=colours[number])
                    panel.text(x, height + 1, f"{height:.1f}", ha="center", va="bottom", fontsize=7.5)
        panels[0].bar(0, 0, color=colours[number], label=name)  # its colour in the legend
    for panel, label in zip(panels, ("images that stop there, %", "of these right, %")):
        panel.set_ylabel(label)
        remove_frame(panel)
        panel.grid(visible=False, axis="x")
    panels[0].margins(y=0.12)
    panels[1].set(ylim=(0, 112), yticks=range(0, 101, 20))
    panels[1].set_xticks(
        range(len(positions)), [f"look {look + 1}\nafter group {group + 1}" for look, group in positions]
    )
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=4, frameon=False)
    return figure
