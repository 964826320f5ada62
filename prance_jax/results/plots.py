"""Accuracy against multiply-accumulates and against measured speed, as one picture."""

from __future__ import annotations

import re
import statistics
from pathlib import Path

from prance_jax.core.errors import UserError
from prance_jax.core.files import atomic_file
from prance_jax.results.names import display_name
from prance_jax.results.rows import Results, Row, Speed

# Colours that colour-blind readers can tell apart (Okabe and Ito 2008), and a marker each.
_STYLES = {
    "dense": ("#000000", "*"),
    "best_static_finetuned": ("#0072b2", "s"),
    "random_routing": ("#e69f00", "v"),
    "confidence": ("#009e73", "^"),
    "oracle": ("#7f7f7f", "X"),
    "meta_largest": ("#7f7f7f", "X"),
    "best_static": ("#0072b2", "s"),
    "random_policy": ("#e69f00", "v"),
    "single": ("#56b4e9", "D"),
    "tome": ("#009e73", "^"),
    "evit": ("#cc79a7", "<"),
    "prance": ("#d55e00", "o"),
    "dvt": ("#882255", "X"),
    "cf_vit": ("#44aa99", "d"),
    "thinkingvit": ("#332288", "h"),
}
# What the caption says of rows whose names do not explain themselves.
_CAPTIONS = {
    "meta_largest": "all tokens and channels of the network of stage one",
    "best_static": "one structure for all images, found by search",
    "random_policy": "decisions drawn at random, at the same mean MACs",
    "best_static_finetuned": "one structure for all images, fine-tuned as long as the cascade",
    "random_routing": "the cascade of PRANCE, as many images stop at each exit, drawn at random",
    "confidence": "the same cascade, an image stops where the largest probability is high enough",
    "oracle": "the same cascade, decided with the labels known; an upper bound",
}


def plot_results(results: Results, path: str | Path) -> None:
    """Writes a PNG with a point per method: mean over seeds, bars of one standard deviation.

    Every token mode has its own filling, budgets of one method are joined, and a caption explains
    the baselines. A dotted line is the accuracy of the dense network, fine-tuned, where it is a row.

    Args:
      results: all rows of a run. Rows without a measured speed are left out of the right panel.
      path: the file.
    """
    if any(row.mean_ap is not None for row in results.rows):
        raise UserError("the picture of accuracy needs one label per image; see the table for the mAP")
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    labelled = _families(results.rows)
    has_tuned = "dense_tuned" in labelled
    figure, panels = pyplot.subplots(1, 2, figsize=(11, 4.9), sharey=True, layout="constrained")
    for panel, column, scale, title in (
        (panels[0], "macs_kept", 100, "multiply-accumulates, % of the dense network"),
        (panels[1], "images_per_s", 1, "images per second, measured"),
    ):
        for label, (style, families) in labelled.items():
            points = sorted(
                _point(rows, column, scale) for rows in families if rows[0].images_per_s or scale == 100
            )
            if points:
                x, y, x_bar, y_bar = zip(*points)
                colour, marker = style
                panel.errorbar(
                    x,
                    y,
                    xerr=x_bar if any(x_bar) else None,
                    yerr=y_bar if any(y_bar) else None,
                    label=display_name(label),
                    color=colour,
                    marker=marker,
                    fillstyle="none" if label == "dense" and has_tuned else _fill(label),
                    markersize=13 if marker == "*" else 7,
                    linestyle="none" if len(points) == 1 else "--" if label == "oracle" else "-",
                    linewidth=1.4,
                    elinewidth=0.8,
                    capsize=2,
                )
        if has_tuned:
            level = _point(labelled["dense_tuned"][1][0], "macs_kept", 100)[1]
            panel.axhline(level, color="black", linestyle=":", linewidth=1, zorder=1)
        panel.set_xlabel(title)
        panel.grid(alpha=0.25)
        panel.set_axisbelow(True)
    panels[1].locator_params(axis="x", nbins=6)  # labels of six figures would touch
    panels[0].set_ylabel("top-1 accuracy, %")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center", frameon=False)
    figure.suptitle(title_of(results), fontsize=9)
    figure.supxlabel(_caption(results.rows), fontsize=8)
    with atomic_file(path) as partial:
        figure.savefig(partial, format="png", dpi=150)
    pyplot.close(figure)


def title_of(results: Results) -> str:
    """Returns the title of a picture: number of test images and seeds, and the machine."""
    seeds = len({row.seed for row in results.rows})
    return f"{results.images:,} test images, {seeds} seed{'s' * (seeds > 1)}; {results.hardware}"


def plot_speed(rows: list[Speed], path: str | Path, title: str) -> None:
    """Writes a PNG of accuracy against measured speed.

    It has a panel per batch size and type, and a point per method.

    Args:
      rows: measurements. Those without an accuracy are left out.
      path: the file.
      title: what was measured, in one line.
    """
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
            bars = [[abs(row.images_per_s - batch * 1e3 / quartile)] for quartile in reversed(row.spread)]
            panel.errorbar(
                row.images_per_s,
                100 * row.top1,
                xerr=bars,
                label=display_name(row.method),
                color=colour,
                marker=marker,
                markersize=13 if marker == "*" else 7,
                linestyle="none",
                capsize=2,
            )
        panel.set_title(f"batch {batch}, {dtype}", fontsize=9)
        panel.set_xlim(0, 1.08 * panel.get_xlim()[1])
        panel.set_xlabel("images per second, measured")
        panel.grid(alpha=0.25)
    panels[0][0].set_ylabel("top-1 accuracy, %")
    figure.legend(*panels[0][0].get_legend_handles_labels(), loc="outside right center", frameon=False)
    figure.suptitle(title, fontsize=9)
    with atomic_file(path) as partial:
        figure.savefig(partial, format="png", dpi=150)
    pyplot.close(figure)


def _fill(label: str) -> str:
    if label.endswith("prune_merge"):
        return "none"
    return "left" if label.endswith("_merge") else "full"


def _caption(rows: tuple[Row, ...]) -> str:
    """A sentence for each kind of baseline in the rows."""
    kinds = {_kind(row.method) for row in rows}
    shown = [name for name in _CAPTIONS if name in kinds]
    return "\n".join(f"{display_name(name)}: {_CAPTIONS[name]}." for name in shown)


def _kind(method: str) -> str | None:
    """The entry of `_STYLES` with which a method begins."""
    return next((name for name in _STYLES if method == name or method.startswith(f"{name}_")), None)


def _families(rows: tuple[Row, ...]) -> dict[str, tuple[tuple[str, str], list[list[Row]]]]:
    """Label -> (style, rows of each method); methods that differ only in budget are one family."""
    families: dict[str, tuple[tuple[str, str], list[list[Row]]]] = {}
    for method in dict.fromkeys(row.method for row in rows):
        label = re.sub(r"_\d+$", "", method)
        style = _STYLES.get(_kind(method), ("#999933", "P"))
        if label not in families:
            families[label] = (style, [])
        families[label][1].append([row for row in rows if row.method == method])
    return families


def _point(rows: list[Row], column: str, scale: float) -> tuple[float, float, float, float]:
    """Mean and standard deviation of one method: x, y, bar of x, bar of y."""
    xs, ys = [scale * getattr(row, column) for row in rows], [100 * row.top1 for row in rows]
    spread = lambda values: statistics.stdev(values) if len(values) > 1 else 0.0
    return statistics.fmean(xs), statistics.fmean(ys), spread(xs), spread(ys)
