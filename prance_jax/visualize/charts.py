"""Draws charts of a run: MACs of each image, and decisions by class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from prance_jax.spec.search_space import SearchSpace
from prance_jax.visualize.trace import Trace

# Colours of Okabe and Ito (2008), as in `prance_jax.results.plots`.
BLUE, ORANGE, GREEN, RED, GREY = "#0072b2", "#e69f00", "#009e73", "#d55e00", "#7f7f7f"
_MOST_CLASSES = 20


def plot_macs(trace: Trace, labels: np.ndarray, classes: Sequence[str]) -> Any:
    """Draws how many images use how many MACs, and the MACs of each class.

    Args:
      trace: decisions for N images.
      labels: int [N], class index of each.
      classes: names of the classes.

    Returns:
      A matplotlib figure.
    """
    share, is_right = 100 * trace.macs_kept, trace.predicted == labels
    figure = new_figure(10, 4.2)
    histogram, by_class = figure.subplots(1, 2)
    low, high = np.floor(share.min()), np.ceil(share.max())
    edges = np.linspace(low, max(high, low + 1), 25)
    parts = [share[is_right], share[~is_right]]
    histogram.hist(parts, edges, stacked=True, color=(BLUE, RED), label=("right", "wrong"))
    mean = f"mean {share.mean():.1f} %"
    histogram.axvline(share.mean(), color="black", linewidth=1, linestyle="--", label=mean)
    histogram.set(xlabel="MACs spent, % of the dense network", ylabel="images", title="MACs of each image")
    histogram.legend(frameon=False)

    selected = _select_classes(share, labels, len(classes))
    parts = [share[labels == index] for index in selected]
    if parts:
        boxes = by_class.boxplot(
            parts, orientation="horizontal", whis=(5, 95), showfliers=False, patch_artist=True, widths=0.62
        )
        for box in boxes["boxes"]:
            box.set(facecolor="#9ecae1", edgecolor=BLUE)
        for line in boxes["medians"]:
            line.set(color="black", linewidth=1.6)
        by_class.set_yticks(range(1, len(selected) + 1), [_short(classes[index]) for index in selected])
        by_class.invert_yaxis()
    by_class.set(xlabel="MACs spent, % of the dense network", title=f"by class{_subset(selected, classes)}")
    for panel in (histogram, by_class):
        remove_frame(panel)
    return figure


def plot_decisions(
    trace: Trace,
    labels: np.ndarray,
    classes: Sequence[str],
    space: SearchSpace,
    rates: Mapping[str, Sequence[float] | None],
) -> Any:
    """Draws histograms by class of the chosen keep rates, widths and MLP ratios.

    Each decision has a column. Every row of a panel adds up to 100 %.

    Args:
      trace: decisions for N images.
      labels: int [N], class index of each.
      classes: names of the classes.
      space: search space of the network.
      rates: name of each keep rate of one decision -> its choices, such as {"prune": (0.5, 1.0)};
        None where any number may be chosen.

    Returns:
      A matplotlib figure.
    """
    selected = _select_classes(100 * trace.macs_kept, labels, len(classes))
    by_class = ((_short(classes[index]), labels == index) for index in selected)
    rows = [("all", np.ones(len(labels), bool)), *by_class]
    columns = space.groups - 1
    titles = [*(f"{name}: share of tokens kept" for name in rates), "embedding width", "MLP ratio"]
    figure = new_figure(max(6.0, 1.2 + 3.1 * columns), (1.0 + 0.2 * len(rows)) * len(titles))
    panels = figure.subplots(len(titles), columns, squeeze=False)
    starts = (*space.first_layers, space.depth)
    for column in range(columns):
        layers = slice(starts[column + 1], starts[column + 2])
        widths = trace.widths[:, layers]
        ratios = trace.mlp_dims[:, layers] / widths
        nearest = np.abs(ratios[..., None] - np.array(space.ratios)).argmin(axis=-1)
        quantities = [
            *((trace.keep[:, column, index, None], choices) for index, choices in enumerate(rates.values())),
            (widths, space.widths),
            (np.array(space.ratios)[nearest], space.ratios),
        ]
        for line, (values, choices) in enumerate(quantities):
            panel = panels[line, column]
            _heat_map(panel, values, choices, rows if column == 0 else [("", mask) for _, mask in rows])
            span = f"layers {layers.start + 1} to {layers.stop}"
            span = span if layers.stop - layers.start > 1 else f"layer {layers.stop}"
            head = f"decision {column + 1} ({span})\n" if line == 0 else ""
            panel.set_title(head + titles[line], fontsize=9)
            if column == 0:
                panel.set_ylabel("class", fontsize=8)
    return figure


def new_figure(width: float, height: float) -> Any:
    """Makes a matplotlib figure.

    Args:
      width: inches.
      height: inches.
    """
    # Not by pyplot, which would keep the figure and choose a backend for the whole process.
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def remove_frame(panel: Any) -> None:
    """Removes the upper and right line of a matplotlib panel and adds a pale grid."""
    panel.spines[["top", "right"]].set_visible(False)
    panel.grid(alpha=0.2)
    panel.set_axisbelow(True)


def _heat_map(panel: Any, values: np.ndarray, choices: Sequence[float] | None, rows: Sequence[tuple]) -> None:
    """Draws the share of each choice among values [N, ...], one line per row (name, mask [N]).

    Without choices, shares between 0 and 1 are put into ten bins.
    """
    choices = np.linspace(0.05, 0.95, 10) if choices is None else np.array(choices)
    index = np.abs(values[..., None] - choices).argmin(axis=-1)
    words = [f"{choice:.3g}" for choice in choices]
    shares = np.zeros((len(rows), len(words)))
    for line, (_, mask) in enumerate(rows):
        counts = np.bincount(index[mask].ravel(), minlength=len(words))
        shares[line] = 100 * counts / max(1, counts.sum())
    panel.imshow(shares, cmap="Blues", vmin=0, vmax=100, aspect="auto")
    panel.axhline(0.5, color="black", linewidth=0.8)
    for line, column in zip(*np.nonzero(shares >= 0.5)):
        share = shares[line, column]
        colour = "white" if share > 55 else "black"
        panel.text(column, line, f"{share:.0f}", ha="center", va="center", fontsize=6.5, color=colour)
    panel.set_xticks(range(len(words)), words, fontsize=7)
    panel.set_yticks(range(len(rows)), [name for name, _ in rows], fontsize=7)
    panel.tick_params(length=0)
    for side in panel.spines.values():
        side.set_visible(False)


def _select_classes(share: np.ndarray, labels: np.ndarray, num_classes: int) -> list[int]:
    """Selects classes with images: all in order, or of many those with the lowest and highest mean MACs."""
    present = [index for index in range(num_classes) if (labels == index).any()]
    if len(present) <= _MOST_CLASSES:
        return present
    order = sorted(present, key=lambda index: share[labels == index].mean())
    return [*order[: _MOST_CLASSES // 2], *order[-_MOST_CLASSES // 2 :]]


def _subset(selected: Sequence[int], classes: Sequence[str]) -> str:
    is_subset = len(selected) == _MOST_CLASSES < len(classes)
    half = _MOST_CLASSES // 2
    return f": the {half} with the fewest and the {half} with the most" if is_subset else ""


def _short(name: str) -> str:
    return name if len(name) <= 18 else name[:17] + "…"
