"""The compare command's picture: a curve for every method, by MACs and by measured speed."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from prance_jax.core.files import atomic_file
from prance_jax.results.names import display_name
from prance_jax.results.plots import title_of
from prance_jax.results.rows import Results, Row

_MARKERS = "osv^<>DPX*hdp"
_TICKS = (10, 20, 30, 40, 50, 60, 70, 80, 85, 90, 92, 94, 95, 96, 97, 98, 98.5, 99, 99.5, 99.8, 99.9)


class Point(NamedTuple):
    """One row of the table, means over seeds.

    Attributes:
      macs: MACs, % of the dense network's.
      top1: accuracy, %.
      deviation: sample standard deviation of the accuracy over seeds, points.
      speed: images per second; None if it was not measured.
    """

    macs: float
    top1: float
    deviation: float
    speed: float | None


def curves(rows: Sequence[Row], tuned: bool) -> dict[str, list[Point]]:
    """Groups rows into curves, one per method. The dense network has none.

    Args:
      rows: of the compare command.
      tuned: False for methods on the dense network as it is; True for all that was trained:
        fine-tuned methods, those with their own token count per image, and PRANCE.

    Returns:
      Key of the method, without its budget and `_tuned` -> points, the fewest MACs first.
    """
    points: dict[str, list[Point]] = {}
    for name in dict.fromkeys(row.method for row in rows):
        label = re.sub(r"_\d+(_time)?$", "", name)
        is_trained = label.endswith(("_tuned", "_free")) or label.startswith("prance")
        if is_trained is tuned and not label.startswith("dense"):
            point = _point([row for row in rows if row.method == name])
            points.setdefault(label.removesuffix("_tuned"), []).append(point)
    return {label: sorted(curve) for label, curve in points.items()}


def plot_comparison(results: Results, path: str | Path) -> None:
    """Writes a PNG of three panels: without training, after training, and speed after training.

    Bars are one standard deviation over seeds. The axis of accuracy is logarithmic in errors, so
    that one method of low accuracy does not press the others together.

    Args:
      results: all rows of the compare command.
      path: the file.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    plain, tuned = (curves(results.rows, kind) for kind in (False, True))
    labels = list(dict.fromkeys([*plain, *tuned]))
    styles = {label: _style(index, label) for index, label in enumerate(labels)}
    trained = "dense_tuned" if any(row.method == "dense_tuned" for row in results.rows) else "dense"
    figure, panels = pyplot.subplots(1, 3, figsize=(15, 5.4), layout="constrained")
    handles: dict[str, Any] = {}
    for panel, title, x_title, panel_curves, reference in (
        (panels[0], "dense network, not fine-tuned", "multiply-accumulates, % of dense", plain, "dense"),
        (panels[1], "after training", "multiply-accumulates, % of dense", tuned, trained),
        (panels[2], "after training", "images per second, measured", tuned, trained),
    ):
        is_timed = panel is panels[2]
        level = _point([row for row in results.rows if row.method == reference])
        dash = {"color": "black", "linestyle": "--" if reference == "dense" else ":", "linewidth": 1}
        handles[reference] = panel.axhline(_error(level.top1, results), **dash)
        if is_timed and level.speed:
            panel.axvline(level.speed, **dash)
        for label, points in panel_curves.items():
            points = [point for point in points if not is_timed or point.speed]
            if points:
                handles[label] = panel.errorbar(
                    [point.speed if is_timed else point.macs for point in points],
                    [_error(point.top1, results) for point in points],
                    yerr=list(zip(*(_bars(point, results) for point in points))),
                    elinewidth=0.6,
                    **styles[label],
                )
        _accuracy_axis(panel)
        panel.set_title(title, fontsize=10)
        panel.set_xlabel(x_title)
        panel.grid(alpha=0.25)
    panels[0].set_ylabel("top-1 accuracy, %")
    # The legend from the best to the worst at the least compute, below the dense network.
    labels = [label for label in labels if label in handles]
    labels.sort(key=lambda label: -(tuned.get(label) or plain[label])[0].top1)
    keys = [key for key in handles if key.startswith("dense")] + labels
    names = [display_name(key) for key in keys]
    figure.legend([handles[key] for key in keys], names, loc="outside right center", frameon=False)
    figure.suptitle(title_of(results), fontsize=9)
    with atomic_file(path) as partial:
        figure.savefig(partial, format="png", dpi=130)
    pyplot.close(figure)


def _style(index: int, label: str) -> dict[str, Any]:
    """Colour and marker of the method number `index`; PRANCE stands out."""
    from matplotlib import pyplot

    marker = _MARKERS[index % len(_MARKERS)]
    if label.startswith("prance"):
        return {"color": "#d55e00", "marker": marker, "markersize": 8, "linewidth": 2.4, "zorder": 3}
    colour = pyplot.get_cmap("tab20").colors[(2 * index + index // 10) % 20]
    return {"color": colour, "marker": marker, "markersize": 6, "linewidth": 1.1, "zorder": 2}


def _point(rows: list[Row]) -> Point:
    top1, speeds = [100 * row.top1 for row in rows], [row.images_per_s for row in rows if row.images_per_s]
    return Point(
        statistics.fmean(100 * row.macs_kept for row in rows),
        statistics.fmean(top1),
        statistics.stdev(top1) if len(top1) > 1 else 0.0,
        statistics.fmean(speeds) if speeds else None,
    )


def _error(top1: float, results: Results) -> float:
    """Errors in %, at least half an image: a logarithm has no zero."""
    return max(100 - top1, 50 / results.images)


def _bars(point: Point, results: Results) -> tuple[float, float]:
    """The lengths of a bar to fewer errors and to more."""
    error = _error(point.top1, results)
    return error - _error(point.top1 + point.deviation, results), point.deviation


def _accuracy_axis(panel) -> None:
    """An axis of errors, logarithmic, upside down, labelled with accuracies."""
    from matplotlib import ticker

    panel.set_yscale("log")
    panel.invert_yaxis()
    worst, best = (100 - error for error in panel.get_ylim())
    panel.yaxis.set_major_locator(ticker.FixedLocator([100 - tick for tick in ticks(worst, best)]))
    panel.yaxis.set_major_formatter(ticker.FuncFormatter(lambda error, _: f"{100 - error:g}"))
    panel.yaxis.set_minor_locator(ticker.NullLocator())


def ticks(worst: float, best: float) -> list[float]:
    """Returns round accuracies at which an axis of errors is marked.

    Args:
      worst: lowest accuracy of the axis, %.
      best: highest accuracy of the axis, %.

    Returns:
      Rising accuracies, %; at least four if the two differ by a tenth of a point or more.
    """
    inside = [tick for tick in _TICKS if worst <= tick <= best]
    for step in (5, 2, 1, 0.5, 0.2, 0.1, 0.05, 0.02):
        if len(inside) >= 4:
            break
        inside = [round(step * n, 2) for n in range(math.ceil(worst / step), math.floor(best / step) + 1)]
    return inside
