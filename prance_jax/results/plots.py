"""Accuracy against multiply-accumulates and against measured speed, as one picture."""

from __future__ import annotations

import re
import statistics
from pathlib import Path

from prance_jax.results.rows import Results, Row, Speed

# Colours that colour-blind readers can tell apart (Okabe and Ito 2008), and a marker each.
_STYLES = {
    "dense": ("#000000", "*"),
    "meta_largest": ("#7f7f7f", "X"),
    "best_static": ("#0072b2", "s"),
    "random_policy": ("#e69f00", "v"),
    "single": ("#56b4e9", "D"),
    "tome": ("#009e73", "^"),
    "evit": ("#cc79a7", "<"),
    "prance": ("#d55e00", "o"),
}


def plot_results(results: Results, path: str | Path) -> None:
    """Writes a PNG with a point per method (mean over seeds, bars of one standard deviation), every token mode
    filled in its own way, budgets of one selector joined. Rows without a measured speed are left out of the right panel."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(11, 4.6), sharey=True, layout="constrained")
    for panel, column, scale, title in (
        (panels[0], "macs_kept", 100, "multiply-accumulates, % of the dense network"),
        (panels[1], "images_per_s", 1, "images per second, measured"),
    ):
        for label, (style, rows) in _families(results.rows).items():
            points = sorted(_point(own, column, scale) for own in rows if own[0].images_per_s or scale == 100)
            if points:
                x, y, x_bar, y_bar = zip(*points)
                colour, marker = style
                panel.errorbar(
                    x,
                    y,
                    xerr=x_bar,
                    yerr=y_bar,
                    label=label,
                    color=colour,
                    marker=marker,
                    fillstyle=_fill(label),
                    markersize=13 if marker == "*" else 7,
                    linewidth=1.4,
                    elinewidth=0.8,
                    capsize=2,
                )
        panel.set_xlabel(title)
        panel.grid(alpha=0.25)
        panel.set_axisbelow(True)
    panels[0].set_ylabel("top-1 accuracy, %")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center", frameon=False)
    seeds = len({row.seed for row in results.rows})
    figure.suptitle(
        f"{results.images:,} test images, {seeds} seed{'s' * (seeds > 1)}; {results.hardware}", fontsize=9
    )
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def plot_speed(rows: list[Speed], path: str | Path, title: str) -> None:
    """Writes a PNG of accuracy against measured speed, a panel for each batch size and a point for each method; rows
    without an accuracy are left out."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = [row for row in rows if row.top1 is not None]
    sizes = sorted({(row.dtype, row.batch) for row in rows})
    figure, panels = pyplot.subplots(
        1, len(sizes), figsize=(1.5 + 3.2 * len(sizes), 3.8), sharey=True, layout="constrained", squeeze=False
    )
    for panel, (dtype, batch) in zip(panels[0], sizes):
        for row in (row for row in rows if (row.dtype, row.batch) == (dtype, batch)):
            colour, marker = _STYLES["prance" if row.method == "adaptive" else row.method]
            bars = [[abs(row.images_per_s - batch * 1e3 / edge)] for edge in reversed(row.spread)]
            panel.errorbar(
                row.images_per_s,
                100 * row.top1,
                xerr=bars,
                label=row.method,
                color=colour,
                marker=marker,
                markersize=13 if marker == "*" else 7,
                capsize=2,
            )
        panel.set_title(f"batch {batch}, {dtype}", fontsize=9)
        panel.set_xlim(0, 1.08 * panel.get_xlim()[1])
        panel.set_xlabel("images per second, measured")
        panel.grid(alpha=0.25)
    panels[0][0].set_ylabel("top-1 accuracy, %")
    figure.legend(*panels[0][0].get_legend_handles_labels(), loc="outside right center", frameon=False)
    figure.suptitle(title, fontsize=9)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def _fill(label: str) -> str:
    if label.endswith("prune_merge"):
        return "none"
    return "left" if label.endswith("_merge") else "full"


def _families(rows: tuple[Row, ...]) -> dict[str, tuple[tuple[str, str], list[list[Row]]]]:
    """Label -> (style, rows of each method); methods that differ in the budget alone are one family."""
    found: dict[str, tuple[tuple[str, str], list[list[Row]]]] = {}
    for method in dict.fromkeys(row.method for row in rows):
        kind = next((name for name in _STYLES if method.startswith(name)), None)
        label = re.sub(r"_\d+$", "", method)
        style = _STYLES.get(kind, ("#999933", "P"))
        if label not in found:
            found[label] = (style, [])
        found[label][1].append([row for row in rows if row.method == method])
    return found


def _point(rows: list[Row], column: str, scale: float) -> tuple[float, float, float, float]:
    """Mean and spread of one method: x, y, bar of x, bar of y."""
    xs, ys = [scale * getattr(row, column) for row in rows], [100 * row.top1 for row in rows]
    spread = lambda values: statistics.stdev(values) if len(values) > 1 else 0.0
    return statistics.fmean(xs), statistics.fmean(ys), spread(xs), spread(ys)
