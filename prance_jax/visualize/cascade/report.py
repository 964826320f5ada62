"""Writes `report.html` and the folder `show` of a trained cascade."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from markupsafe import Markup

from prance_jax.cascade.routing import selector_actions
from prance_jax.cascade.table import stop_nodes
from prance_jax.experiments.cascade.rows import CascadeRow, cascade_rows
from prance_jax.experiments.cascade.stages import CascadeStages
from prance_jax.results.names import display_name
from prance_jax.results.rows import Results
from prance_jax.results.significance import CASCADE
from prance_jax.results.table import mean_exits
from prance_jax.visualize import html
from prance_jax.visualize.cascade.answers import answer_sheet, easiest_and_hardest, make_exit_panels
from prance_jax.visualize.cascade.charts import plot_exits, plot_image_macs
from prance_jax.visualize.panels import ExitPanel
from prance_jax.visualize.report import accuracy_sections, select_seed, stored_results, write_page
from prance_jax.visualize.user_images import read_user_images

_NUM_EXTREME = 12  # images of each kind on the sheet
_ANSWERS = (
    "Below each image are the answers on the way, one line per exit. "
    "A bar is as long as the probability of the answer. The image stops at the last line. "
    "Looks and groups are counted from 1."
)


def write_cascade_report(
    experiment: CascadeStages,
    *,
    seed: int | None = None,
    mode: str | None = None,
    budget: float | None = None,
    user_images: Sequence[str] = (),
) -> Path:
    """Draws the pictures of a trained cascade and writes its `report.html`.

    Args:
      experiment: a trained workdir whose config has the section `cascade`.
      seed: a seed of the run; the first by default.
      mode: a token mode of the run; a cascade has the first one alone.
      budget: share of the dense MACs: images are shown at the nearest budget of the config, by default
        at the middle one.
      user_images: image files or folders to show as well.

    Returns:
      Path of the page.

    Raises:
      UserError: the run lacks the seed, mode or a stage, or an image cannot be read.
    """
    seed = select_seed(experiment, seed, mode)
    workdir, source, data = experiment.workdir, experiment.source, experiment.config.data
    loaded = read_user_images(user_images, source, data) if user_images else None
    drawer, results = html.Drawer(workdir.path / "show"), stored_results(workdir)
    rows = [row for row in cascade_rows(experiment, seed) if row.method.startswith(CASCADE)]
    row = _nearest(rows, experiment.settings.budgets, budget)
    parts = accuracy_sections(results, workdir.path)
    if loaded is not None:
        parts.append(_user_section(user_panels(experiment, row, seed, *loaded), row, seed, drawer))
    parts += [
        *_exits_section(results, drawer),
        _macs_section(rows, seed, drawer),
        _extremes_section(experiment, row, seed, drawer),
    ]
    lead = (
        "A Vision Transformer that first looks at an image on a coarse grid and answers. "
        "Then it stops, goes deeper, or looks again on a finer grid."
    )
    return write_page(experiment, lead, parts, results, drawer)


def _nearest(rows: Sequence[CascadeRow], budgets: Sequence[float], budget: float | None) -> CascadeRow:
    """The row whose images are shown; rows are in the order of the budgets."""
    target = sorted(budgets)[len(budgets) // 2] if budget is None else budget
    return min(zip(budgets, rows), key=lambda pair: abs(pair[0] - target))[1]


def _exits_section(results: Results | None, drawer: html.Drawer) -> list[Markup]:
    stored = results.rows if results else ()
    methods = dict.fromkeys(row.method for row in stored if row.method.startswith(CASCADE) and row.exits)
    if not methods:
        return []
    exits = {
        display_name(method): mean_exits([row for row in stored if row.method == method])
        for method in methods
    }
    picture = drawer.chart("exits.png", plot_exits(exits), "share and accuracy of the images at each exit")
    text = (
        "Which share of the test images stops at each exit, and which share of these is right. "
        "Figures are means over seeds. An exit stands at the end of a group of layers. "
        "Looks and groups are counted from 1."
    )
    return [html.section("Where images stop", text, picture)]


def _macs_section(rows: Sequence[CascadeRow], seed: int, drawer: html.Drawer) -> Markup:
    figure = plot_image_macs(
        {display_name(row.method): (row.routed.cost, row.routed.correct) for row in rows}
    )
    picture = drawer.chart("macs.png", figure, "MACs of each image at each budget")
    text = (
        f"How many test images use how many MACs at each budget, seed {seed}. "
        "All answers on the way and all decisions are counted, so an image can use more than 100\u00a0%."
    )
    return html.section("MACs of each image", text, picture)


def _extremes_section(experiment: CascadeStages, row: CascadeRow, seed: int, drawer: html.Drawer) -> Markup:
    source, name = experiment.source, display_name(row.method)
    split, cascade, node = source.split("test"), row.cascade, row.routed.node
    parts = []
    selected = easiest_and_hardest(row.table, node, _NUM_EXTREME)
    for heading, index in zip(("fewest MACs", "most MACs"), selected):
        order = np.argsort(index)  # images on disk are read in their order
        units = source.to_unit(np.asarray(split.images[index[order]])[np.argsort(order)])
        names = [f"test image {number}" for number in index]
        panels = make_exit_panels(units, cascade, row.table, index, node[index], source.classes, names)
        parts.append((heading, panels))
    sheet = answer_sheet(parts, f"The easiest and the hardest ({name}, seed {seed})")
    drawer.save("easiest_hardest.png", sheet)
    text = (
        f"Of {len(split.labels):,} test images, those with the fewest and those with the most MACs. "
        "Of images with equally many MACs, the easiest are those with the surest answer, and the hardest "
        f"those with the least sure one. {_ANSWERS}"
    )
    thumbs = (html.exit_thumbs(heading, panels) for heading, panels in parts)
    return html.section(f"The easiest and the hardest: {name}", text, *thumbs)


def _user_section(panels: Sequence[ExitPanel], row: CascadeRow, seed: int, drawer: html.Drawer) -> Markup:
    name = display_name(row.method)
    drawer.save("user_images.png", answer_sheet([("", panels)], f"Your images ({name}, seed {seed})"))
    return html.section(f"Your images: {name}", _ANSWERS, html.exit_thumbs("", panels))


def user_panels(
    experiment: CascadeStages, row: CascadeRow, seed: int, images: np.ndarray, names: Sequence[str]
) -> list[ExitPanel]:
    """Routes images without labels through a cascade and collects the answers.

    Args:
      experiment: the run.
      row: of the selector, at one budget.
      seed: of the row.
      images: float32 [N, S, S, channels], normalised as in training.
      names: name per image.
    """
    cascade, source = row.cascade, experiment.source
    answers = experiment.table(cascade, row.params, images, np.zeros(len(images), np.int32))
    policy_params = experiment.table_policy(seed, max(1, experiment.settings.rounds))
    ppo = experiment.table_ppo(cascade)
    actions = selector_actions(cascade, ppo, policy_params, answers, row.cost_weight)
    node, units = np.asarray(stop_nodes(cascade, actions)), source.to_unit(images)
    index = np.arange(len(images))
    return make_exit_panels(units, cascade, answers, index, node, source.classes, names, with_labels=False)
