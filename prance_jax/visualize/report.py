"""Writes `report.html` and the folder `show` of a trained workdir: results, decisions and learning curves."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from markupsafe import Markup

from prance_jax.config import io
from prance_jax.core.errors import UserError
from prance_jax.core.files import write_atomic
from prance_jax.data.source import check_one_label
from prance_jax.experiments.experiment import Experiment
from prance_jax.experiments.stage_runner import StageRunner, TableEntry
from prance_jax.results import rows, table
from prance_jax.results.names import display_name
from prance_jax.results.plots import plot_results
from prance_jax.results.rows import Results
from prance_jax.results.significance import reference_name
from prance_jax.training.metrics import read_metrics
from prance_jax.training.workdir import Workdir
from prance_jax.visualize import charts, html
from prance_jax.visualize.contact_sheets import easiest_hardest_sheet, kept_sheet
from prance_jax.visualize.learning_curves import plot_learning
from prance_jax.visualize.panels import ImagePanel, easiest_and_hardest, make_panels, spread_by_macs
from prance_jax.visualize.trace import trace_images
from prance_jax.visualize.user_images import read_user_images

_NUM_SPREAD, _NUM_EXTREME = 12, 16  # images on the sheets
_MAX_VALUES = 2**27  # pixel values that are traced: all of the digits, some 900 photographs

_PRUNED = "Patches that were pruned are washed out and hatched."
_MERGED = (
    "Patches that one token carries together share a colour and an outline; "
    "the others are tokens of their own."
)
_LEGEND = {"prune": _PRUNED, "merge": _MERGED}
_RATES = {"merge": ("merge",), "prune_merge": ("prune", "merge")}


def write_report(
    experiment: Experiment,
    *,
    seed: int | None = None,
    mode: str | None = None,
    budget: float | None = None,
    user_images: Sequence[str] = (),
) -> Path:
    """Draws the pictures of a trained workdir and writes its `report.html`.

    Args:
      experiment: a trained workdir.
      seed: a seed of the run; the first by default.
      mode: a token mode of the run; all by default.
      budget: share of the dense MACs, for a selector of all budgets: the nearest evaluated budget is
        shown, by default the middle one.
      user_images: image files or folders to show as well.

    Returns:
      Path of the page.

    Raises:
      UserError: the run lacks the seed, mode, budget or a stage, or an image cannot be read.
    """
    check_one_label(experiment.source, "the report with pictures")
    config, workdir = experiment.config, experiment.workdir
    seed = select_seed(experiment, seed, mode)
    extra = read_user_images(user_images, experiment.source, config.data) if user_images else None
    drawer, results = html.Drawer(workdir.path / "show"), stored_results(workdir)
    parts = accuracy_sections(results, workdir.path)
    for token_mode in config.token_modes if mode is None else (mode,):
        row = _row(experiment, seed, token_mode, budget)
        parts += _decisions(experiment, row, drawer, seed, extra)
    lead = "A Vision Transformer that decides for every image how many tokens and channels to spend."
    return write_page(experiment, lead, parts, results, drawer)


def select_seed(experiment: StageRunner, seed: int | None, mode: str | None) -> int:
    """Returns the seed that is shown: the given one, or the first of the run.

    Args:
      experiment: a trained workdir.
      seed: a seed of the run, or None.
      mode: a token mode of the run, or None.

    Raises:
      UserError: the run lacks the seed or the mode.
    """
    config = experiment.config
    seed = config.seeds[0] if seed is None else seed
    if seed not in config.seeds or (mode is not None and mode not in config.token_modes):
        raise UserError(
            f"{experiment.workdir.path} has seeds {config.seeds} and token modes {config.token_modes}, "
            f"not seed {seed} with {mode!r}"
        )
    return seed


def stored_results(workdir: Workdir) -> Results | None:
    """Returns the results of a workdir; None before its first evaluation, or if they are damaged."""
    return rows.stored_results(workdir.path)


def write_page(
    experiment: StageRunner, lead: str, parts: Sequence[Markup], results: Results | None, drawer: html.Drawer
) -> Path:
    """Adds how the run was learned and configured, and writes `report.html`.

    Args:
      experiment: a trained workdir.
      lead: plain text under the heading.
      parts: the sections so far.
      results: for the hardware; None before the first evaluation.
      drawer: writes the picture of the learning curves.

    Returns:
      Path of the page.
    """
    config, workdir = experiment.config, experiment.workdir
    command = workdir.command()
    text = f"{results.hardware}. {command}" if results else command
    settings = html.details("configuration", json.dumps(io.to_dict(config), indent=1))
    learned = _learning(workdir.metrics_file, drawer)
    path = workdir.path / "report.html"
    sections = [*parts, *learned, html.section("The run", text, settings)]
    write_atomic(path, html.render_page(f"PRANCE on {config.name}", lead, sections))
    return path


def _row(experiment: Experiment, seed: int, mode: str, budget: float | None) -> TableEntry:
    """Selects the row of the table whose decisions are shown."""
    budgets = experiment.config.budgets
    if not budgets:
        if budget is not None:
            raise UserError(
                "this selector was trained for one budget; for others train with selector.cost_weights, as "
                "configs/digits_budgets.py"
            )
        return experiment.prance(seed, mode)
    target = sorted(budgets)[len(budgets) // 2] if budget is None else budget
    nearest = min(budgets, key=lambda share: abs(share - target))
    method = f"prance_{mode}_{round(100 * nearest)}"
    return next(row for row in experiment.at_budgets(seed, mode) if row.method == method)


def accuracy_sections(results: Results | None, folder: Path) -> list[Markup]:
    """Makes the large figures, and the section with accuracy against MACs and the table.

    Args:
      results: of the run; without any there are no sections.
      folder: the workdir, for `accuracy.png`.
    """
    if results is None:
        return []
    plot_results(results, folder / "accuracy.png")
    head, *rows = table.cells(results)
    methods = list(dict.fromkeys(row.method for row in results.rows))
    prance = [index for index, method in enumerate(methods) if method.startswith("prance")]
    picture = html.chart((folder / "accuracy.png").read_bytes(), "accuracy against MACs and against speed")
    tiles = [html.tiles(_headline(results, methods[prance[0]]))] if prance else []
    text = "Each method that was run, on the same test images: up is more accurate, left is less compute."
    figures = html.table(head, rows, prance, table.remarks(results))
    return [*tiles, html.section("Accuracy and cost", text, picture, figures)]


def _headline(results: Results, method: str) -> list[tuple[str, str]]:
    rows = [row for row in results.rows if row.method == method]
    figures = (
        ("top1", "{:.1%}", 1, f"of {results.images:,} test images right, {display_name(method)}"),
        ("top1_change", "{:+.2f}", 100, f"points against {reference_name(results.rows)}"),
        ("macs_kept", "{:.0%}", 1, "of its multiply-accumulates"),
        ("tokens_left", "{:.0%}", 1, "of the tokens at the end"),
        ("gap_won", "{:.0%}", 1, "of the way from random routing to the label oracle"),
        ("speedup", "{:.2f} ×", 1, "its speed, measured"),
    )
    tiles = []
    for name, form, scale, words in figures:
        values = [getattr(row, name) for row in rows]
        if all(value is not None for value in values):
            tiles.append((form.format(scale * float(np.mean(values))), words))
    return tiles


def _decisions(
    experiment: Experiment, row: TableEntry, drawer: html.Drawer, seed: int, user_images: tuple | None
) -> list[Markup]:
    """Makes the sections on the decisions of one row of the table."""
    source, space, mode = experiment.source, row.spec.space, row.spec.token_optimization
    name, batch = display_name(row.method), experiment.config.evaluation.batch
    run = f"{name}, seed {seed}"
    parts, legend = [], _LEGEND.get(mode, f"{_PRUNED} {_MERGED}")
    if user_images is not None:
        images, names = user_images
        trace = trace_images(row, images, batch)
        panels = make_panels(source.to_unit(images), trace, source.classes, None, names)
        drawer.save(f"user_images_{mode}.png", kept_sheet(panels, space, f"Your images ({run})"))
        parts.append(html.section(f"Your images: {name}", legend, html.cards(panels, space)))

    split = source.split("test")
    step = -(-math.prod(split.images.shape) // _MAX_VALUES)
    images, labels = np.asarray(split.images[::step]), np.asarray(split.labels[::step])
    trace = trace_images(row, images, batch)

    def select(index: np.ndarray, with_decisions: bool) -> list[ImagePanel]:
        names = [f"test image {step * number}" for number in index]
        units = source.to_unit(images[index])
        return make_panels(units, trace.select(index), source.classes, labels[index], names, with_decisions)

    spread = select(spread_by_macs(trace.macs_kept, _NUM_SPREAD), True)
    sheet = kept_sheet(spread, space, f"What was kept, from fewest to most MACs ({run})")
    drawer.save(f"kept_{mode}.png", sheet)
    text = f"{len(spread)} test images, spread evenly from the fewest MACs to the most. {legend}"
    parts.append(html.section(f"What was kept: {name}", text, html.cards(spread, space)))

    easy, hard = (select(index, False) for index in easiest_and_hardest(trace.macs_kept, _NUM_EXTREME))
    sheet = easiest_hardest_sheet(easy, hard, f"The easiest and the hardest ({run})")
    drawer.save(f"easiest_hardest_{mode}.png", sheet)
    thumbs = html.thumbs("fewest MACs", easy), html.thumbs("most MACs", hard)
    text = f"Of {len(labels):,} test images, those with the fewest and those with the most MACs."
    parts.append(html.section(f"The easiest and the hardest: {name}", text, *thumbs))

    figure = charts.plot_macs(trace, labels, source.classes)
    cost = drawer.chart(f"macs_{mode}.png", figure, "MACs by image and class")
    keep_choices = experiment.selector(mode).actions.keep_choices
    rates = {
        rate: keep_choices and keep_choices[index] for index, rate in enumerate(_RATES.get(mode, ("prune",)))
    }
    figure = charts.plot_decisions(trace, labels, source.classes, space, rates)
    choices = drawer.chart(f"decisions_{mode}.png", figure, "histograms of decisions by class")
    text = (
        "MACs of each image and class, and what the selector chooses for which class. "
        "Every row of a histogram adds up to 100\u00a0%."
    )
    parts.append(html.section(f"Decisions by class: {name}", text, cost, choices))
    return parts


def _learning(metrics: Path, drawer: html.Drawer) -> list[Markup]:
    figure = plot_learning(read_metrics(metrics)) if metrics.exists() else None
    if figure is None:
        return []
    picture = drawer.chart("learning.png", figure, "learning curves of all stages")
    text = "Means over the training steps between two log lines."
    return [html.section("How it was learned", text, picture)]
