"""Everything there is to see of a trained workdir: pictures in its folder `show`, and `report.html` with all of them."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from prance_jax.config import io
from prance_jax.core.errors import UserError
from prance_jax.core.files import disk_errors, write_atomic
from prance_jax.experiments.experiment import Experiment
from prance_jax.experiments.stage_runner import TableEntry
from prance_jax.results import table as results_file
from prance_jax.results.plots import plot_results
from prance_jax.results.rows import Results, load_results
from prance_jax.training.metrics import read_metrics
from prance_jax.visualize import charts, html
from prance_jax.visualize.contact_sheets import ends_sheet, kept_sheet
from prance_jax.visualize.panels import ImagePanel, easiest_and_hardest, make_panels, spread_by_macs
from prance_jax.visualize.trace import trace_images
from prance_jax.visualize.user_images import read_user_images

_SPREAD, _ENDS = 12, 16  # images on the sheets
_NUMBERS = 2**27  # pixel values that may be looked at: all of the digits, some 900 photographs

_PRUNED = "Patches that were pruned are washed out and hatched."
_MERGED = "Patches that one token carries together share a colour and an outline; the others are tokens of their own."
_LEGEND = {"prune": _PRUNED, "merge": _MERGED}
_RATES = {"merge": ("merge",), "prune_merge": ("prune", "merge")}


def write_report(
    experiment: Experiment,
    *,
    seed: int | None = None,
    mode: str | None = None,
    budget: float | None = None,
    pictures: Sequence[str] = (),
) -> Path:
    """Draws the pictures of a trained workdir and writes its `report.html`, whose path is returned.

    seed: of the run; the first by default. mode: one of its token modes; all by default. budget: of a selector of every
    budget, the nearest that was evaluated; the middle one by default. pictures: files or folders of the user's own.
    Raises UserError for a seed, mode or budget that the run does not have, stages that are missing, or pictures that
    cannot be read.
    """
    config, workdir = experiment.config, experiment.workdir
    seed = config.seeds[0] if seed is None else seed
    if seed not in config.seeds or (mode is not None and mode not in config.token_modes):
        raise UserError(
            f"{workdir.path} has seeds {config.seeds} and token modes {config.token_modes}, not seed {seed} with {mode!r}"
        )
    own = read_user_images(pictures, experiment.source, config.data) if pictures else None
    drawer = _Drawer(workdir.path / "show")
    parts = []
    found = load_results(workdir.path) if (workdir.path / "results.json").exists() else None
    if found is not None:
        parts += _measured(found, drawer, workdir.path)
    for one in config.token_modes if mode is None else (mode,):
        parts += _decided(experiment, _row(experiment, seed, one, budget), drawer, seed, own)
    parts += _learned(workdir.metrics_file, drawer)
    command = json.loads(workdir.config_file.read_text())["command"]
    told = f"{found.hardware}. {command}" if found else command
    settings = json.dumps(io.to_dict(config), indent=1)
    parts.append(html.section("The run", told, html.folded("configuration", settings)))
    lead = "A Vision Transformer that decides for every image how many tokens and channels to spend."
    path = workdir.path / "report.html"
    write_atomic(path, html.render_page(f"PRANCE on {config.name}", lead, parts))
    return path


class _Drawer:
    """Writes figures as PNG into a folder and hands them to the page."""

    def __init__(self, folder: Path):
        self._folder = folder

    def save(self, name: str, figure: Any) -> bytes:
        png = html.png_of(figure)
        with disk_errors(self._folder / name):
            self._folder.mkdir(parents=True, exist_ok=True)
            (self._folder / name).write_bytes(png)
        return png

    def chart(self, name: str, figure: Any, words: str) -> str:
        return html.chart(self.save(name, figure), words)


def _row(experiment: Experiment, seed: int, mode: str, budget: float | None) -> TableEntry:
    budgets = experiment.config.budgets
    if not budgets:
        if budget is not None:
            raise UserError(
                "this selector was trained for one budget; train with selector.cost_weights to choose it here"
            )
        return experiment.prance(seed, mode)
    wanted = sorted(budgets)[len(budgets) // 2] if budget is None else budget
    nearest = min(budgets, key=lambda own: abs(own - wanted))
    name = f"prance_{mode}_{round(100 * nearest)}"
    return next(row for row in experiment.at_budgets(seed, mode) if row.method == name)


def _measured(found: Results, drawer: _Drawer, folder: Path) -> list[str]:
    """Figures in large, accuracy against MACs, and the table."""
    plot_results(found, folder / "accuracy.png")
    head, *rows = results_file.cells(found)
    picture = html.chart((folder / "accuracy.png").read_bytes(), "accuracy against MACs and against speed")
    remarks = html.remarks(results_file.remarks(found))
    first = next((row for row in found.rows if row.method.startswith("prance")), None)
    tiles = [] if first is None else [html.tiles(_headline(found, first.method))]
    text = "Each method that was run, on the same test images: up is more accurate, left is less compute."
    return [*tiles, html.section("Accuracy and cost", text, picture, html.table(head, rows), remarks)]


def _headline(found: Results, method: str) -> list[tuple[str, str]]:
    rows = [row for row in found.rows if row.method == method]
    mean = lambda name: float(np.mean([getattr(row, name) for row in rows]))
    figures = [
        (f"{mean('top1'):.1%}", f"of {found.images:,} test images right ({method})"),
        (f"{100 * mean('top1_change'):+.2f}", "points against the dense network"),
        (f"{mean('macs_kept'):.0%}", "of its multiply-accumulates"),
        (f"{mean('tokens_left'):.0%}", "of the tokens left at the end"),
    ]
    if all(row.speedup for row in rows):
        figures.append((f"{mean('speedup'):.2f} ×", "its speed, measured"))
    return figures


def _decided(
    experiment: Experiment, row: TableEntry, drawer: _Drawer, seed: int, own: tuple | None
) -> list[str]:
    """Sections on what one row of the table does with images."""
    source, space, mode = experiment.source, row.spec.space, row.spec.token_optimization
    batch, run = experiment.config.evaluation.batch, f"{row.method}, seed {seed}"
    parts, legend = [], _LEGEND.get(mode, f"{_PRUNED} {_MERGED}")
    if own is not None:
        images, names = own
        yours = make_panels(
            source.to_unit(images), trace_images(row, images, batch), source.classes, None, names
        )
        drawer.save(f"own_{mode}.png", kept_sheet(yours, space, f"Your pictures ({run})"))
        parts.append(html.section(f"Your pictures: {row.method}", legend, html.cards(yours, space)))

    split = source.split("test")
    step = -(-math.prod(split.images.shape) // _NUMBERS)
    images, labels = np.asarray(split.images[::step]), np.asarray(split.labels[::step])
    found = trace_images(row, images, batch)

    def take(index: np.ndarray, panels: bool) -> list[ImagePanel]:
        names = [f"test image {step * one}" for one in index]
        units = source.to_unit(images[index])
        return make_panels(units, found.some(index), source.classes, labels[index], names, panels)

    some = take(spread_by_macs(found.macs_kept, _SPREAD), True)
    drawer.save(
        f"kept_{mode}.png", kept_sheet(some, space, f"What was kept, from fewest to most MACs ({run})")
    )
    text = f"{len(some)} test images, evenly from the one of fewest MACs to the one of most. {legend}"
    parts.append(html.section(f"What was kept: {row.method}", text, html.cards(some, space)))

    easy, hard = (take(index, False) for index in easiest_and_hardest(found.macs_kept, _ENDS))
    drawer.save(f"easiest_hardest_{mode}.png", ends_sheet(easy, hard, f"The easiest and the hardest ({run})"))
    both = (
        html.small_heading("fewest MACs"),
        html.thumbs(easy),
        html.small_heading("most MACs"),
        html.thumbs(hard),
    )
    text = f"Of {len(labels):,} test images those that were given the fewest and the most MACs."
    parts.append(html.section(f"The easiest and the hardest: {row.method}", text, *both))

    cost = drawer.chart(
        f"macs_{mode}.png", charts.plot_macs(found, labels, source.classes), "MACs by image and class"
    )
    lattice = experiment.selector(mode).actions.keep_choices
    rates = {name: lattice and lattice[index] for index, name in enumerate(_RATES.get(mode, ("prune",)))}
    figure = charts.plot_decisions(found, labels, source.classes, space, rates)
    choices = drawer.chart(f"decisions_{mode}.png", figure, "histograms of decisions by class")
    text = (
        "Who gets how much, and what the selector chooses for which class. Every row adds up to 100\u00a0%."
    )
    parts.append(html.section(f"Decisions by class: {row.method}", text, cost, choices))
    return parts


def _learned(metrics: Path, drawer: _Drawer) -> list[str]:
    figure = charts.plot_learning(read_metrics(metrics)) if metrics.exists() else None
    if figure is None:
        return []
    picture = drawer.chart("learning.png", figure, "learning curves of all stages")
    return [
        html.section("How it was learned", "Means over the training steps between two log lines.", picture)
    ]
