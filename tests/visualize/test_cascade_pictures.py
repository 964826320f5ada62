"""Pictures of a cascade whose answers are made by hand: which images, which answers, which numbers."""

import types

import numpy as np
import pytest
from cascade.examples import random_choice, two_looks
from visualize.browser import Page

from prance_jax.cascade.observation import LARGEST_PROBABILITY, NUM_FEATURES
from prance_jax.cascade.routing import route
from prance_jax.cascade.table import CascadeTable
from prance_jax.commands import train
from prance_jax.experiments.cascade.rows import CascadeRow
from prance_jax.results.rows import ExitShare, Results, Row
from prance_jax.results.table import save_results
from prance_jax.spec.cascade import Cascade, Step
from prance_jax.visualize.cascade import report
from prance_jax.visualize.cascade.answers import answer_sheet, easiest_and_hardest, make_exit_panels
from prance_jax.visualize.cascade.charts import plot_exits, plot_image_macs
from prance_jax.visualize.panels import ExitAnswer

SPEC = two_looks()
RNG = np.random.default_rng(0)
CLASSES = ("ant", "bee", "cat", "dog", "a very long name of a class")
COST = np.array([0.0, 0.2, 0.6, 1.1], np.float32)


def make_cascade() -> Cascade:
    """Node 1 after group 0 of the first look, node 2 at its end, node 3 at the end of the second look."""
    first, last = (look.spec for look in SPEC.looks)
    choices = [random_choice(first, group, RNG) for group in range(2)]
    whole = tuple(random_choice(last, group, RNG) for group in range(2))
    return Cascade(SPEC, (Step(0, 0, 0, (choices[0],)), Step(1, 0, 1, (choices[1],)), Step(2, 1, 0, whole)))


CASCADE = make_cascade()


def make_table(confidence: np.ndarray, predicted: np.ndarray, labels: np.ndarray) -> CascadeTable:
    features = np.zeros((*confidence.shape, NUM_FEATURES), np.float32)
    features[:, :, LARGEST_PROBABILITY] = confidence
    quality = (predicted == labels[:, None]).astype(np.float32)
    return CascadeTable(features, predicted, quality, labels, COST)


# Four images; columns are nodes.
TABLE = make_table(
    np.array([[0, 0.9, 0.9, 0.9], [0, 0.6, 0.7, 0.8], [0, 0.5, 0.4, 0.3], [0, 0.95, 0.9, 0.9]]),
    np.array([[-1, 0, 0, 0], [-1, 1, 2, 2], [-1, 3, 3, 4], [-1, 1, 1, 1]]),
    np.array([0, 2, 0, 1]),
)
NODE = np.array([1, 3, 3, 1])


def test_the_easiest_are_sure_and_the_hardest_are_not():
    """By hand: 0 and 3 cost 0.2, and 3 is surer; 1 and 2 cost 1.1, and 2 is the least sure."""
    easy, hard = easiest_and_hardest(TABLE, NODE, 12)
    assert easy.tolist() == [3, 0] and hard.tolist() == [2, 1]


def test_panels_have_the_answers_on_the_way():
    images = RNG.random((2, 16, 16, 1))
    index = np.array([1, 2])
    panels = make_exit_panels(images, CASCADE, TABLE, index, NODE[index], CLASSES, ["one", "two"])
    assert panels[0].answers == (
        ExitAnswer(0, 0, "bee", pytest.approx(0.6)),
        ExitAnswer(0, 1, "cat", pytest.approx(0.7)),
        ExitAnswer(1, 1, "cat", pytest.approx(0.8)),
    )
    assert [answer.exit_name for answer in panels[0].answers] == [
        "look 1, group 1",
        "look 1, group 2",
        "look 2, group 2",
    ]
    assert panels[0].caption == "cat, right" and not panels[0].is_wrong
    assert panels[0].macs_kept == pytest.approx(1.1) and panels[0].pixels.shape == (176, 176, 3)
    assert panels[1].is_wrong and panels[1].caption == "a very long name of a class, label ant"
    (unlabelled,) = make_exit_panels(images[:1], CASCADE, TABLE, [0], [1], CLASSES, ["x.png"], False)
    assert unlabelled.caption == "x.png: ant" and len(unlabelled.answers) == 1
    words = [text.get_text() for text in answer_sheet([("most", panels)], "title").axes[0].texts]
    assert "look 2, group 2" in words and "cat, 80%" in words and "a very …, 30%" in words


def test_a_panel_of_macs_per_budget():
    routed = route(TABLE, NODE)
    rows = {f"PRANCE, {budget} %": (routed.cost, routed.correct) for budget in (20, 33, 50, 70)}
    figure = plot_image_macs(rows)
    shown = [panel for panel in figure.axes if panel.get_visible()]
    assert [panel.get_title() for panel in shown] == [f"{name}: mean 65.0 %" for name in rows]
    heights = [sum(bar.get_height() for bar in bars) for bars in shown[0].containers]
    assert heights == [3, 1]  # right, wrong
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["right", "wrong", "mean"]


def test_bars_of_exits():
    exits = {
        "low": [ExitShare(0, 1, 0.75, 0.98, 0.2), ExitShare(1, 1, 0.25, 0.6, 1.1)],
        "high": [ExitShare(1, 1, 1.0, 0.9, 1.1)],
    }
    share, accuracy = plot_exits(exits).axes
    assert [text.get_text() for text in share.texts] == ["75.0", "25.0", "100.0"]
    assert [text.get_text() for text in accuracy.texts] == ["98.0", "60.0", "90.0"]
    ticks = [label.get_text() for label in accuracy.get_xticklabels()]
    assert ticks == ["look 1\nafter group 2", "look 2\nafter group 2"]


class Run(types.SimpleNamespace):
    """What the report reads of a `CascadeStages`; all rows are made by hand."""


def make_run(path, budgets=(0.2, 0.33, 0.5)):
    rng, count = np.random.default_rng(1), 60
    labels = rng.integers(0, 5, count)
    wrong = rng.random((count, 4)) < 0.2
    predicted = np.where(wrong, rng.integers(0, 5, (count, 4)), labels[:, None])
    table = make_table(rng.uniform(0.3, 1, (count, 4)), predicted, labels)
    rows, stored = [], []
    for budget in budgets:
        node = rng.choice([1, 2, 3], count, p=(1 - budget, budget / 2, budget / 2))
        routed = route(table, node)
        rows.append(CascadeRow(f"prance_cascade_{round(100 * budget)}", routed, CASCADE, {}, 0.5, table))
        exits = tuple(
            ExitShare(step.look, step.last_group, float((node == index).mean()), 0.9, float(COST[index]))
            for index, step in enumerate(CASCADE.steps, start=1)
        )
        top1, cost = float(routed.correct.mean()), float(routed.cost.mean())
        stored.append(Row(rows[-1].method, 0, top1, top1 - 0.9, 0.01, cost, exits=exits, won=1, lost=2))
    images = rng.standard_normal((count, 16, 16, 1)).astype(np.float32)
    source = types.SimpleNamespace(
        classes=CLASSES,
        channels=1,
        to_unit=lambda images: np.clip(0.5 + images / 4, 0, 1),
        split=lambda name: types.SimpleNamespace(images=images, labels=labels),
    )
    dense = (Row("dense", 0, 0.9, 0.0, 0.02, 1.0), Row("dense_tuned", 0, 0.9, 0.0, 0.02, 1.0))
    save_results(Results((*dense, *stored), count, "a machine", "a command", 9.0), path)
    config = types.SimpleNamespace(
        seeds=(0,), token_modes=("prune",), data=None, cascade=True, name="hand-made"
    )
    workdir = types.SimpleNamespace(
        path=path, command=lambda: "a command", metrics_file=path / "metrics.jsonl"
    )
    settings = types.SimpleNamespace(budgets=budgets)
    return Run(config=config, workdir=workdir, source=source, settings=settings, rows=rows)


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "cascade_rows", lambda run, seed: run.rows)
    monkeypatch.setattr("prance_jax.config.io.to_dict", lambda config: {"name": config.name})
    return make_run(tmp_path)


def test_the_report_of_a_cascade(run, tmp_path):
    assert "pictures in" in train.write_pictures(run, everything=True)
    files = {file.name for file in (tmp_path / "show").iterdir()}
    assert files == {"exits.png", "macs.png", "easiest_hardest.png"} and (tmp_path / "accuracy.png").exists()
    text = (tmp_path / "report.html").read_text()
    page = Page(text)
    assert not page.loads and page.tags["h2"] == 5
    assert len(page.images) == 3 + 2 * 12  # charts, the easiest and the hardest
    assert "The easiest and the hardest: PRANCE, 33 %" in page.text and "look 2, group 2" in page.text
    assert "points against the dense network, fine-tuned" in page.text
    assert text.count('class="answer"') == 12 + sum(
        len(CASCADE.path(node)) for node in np.sort(run.rows[1].routed.node)[-12:]
    )


def test_the_nearest_budget_is_shown(run, tmp_path):
    report.write_cascade_report(run, budget=0.9)
    assert "The easiest and the hardest: PRANCE, 50 %" in (tmp_path / "report.html").read_text()


def test_users_images_are_routed_by_the_selector(run, tmp_path, monkeypatch):
    """All stop at node 2, by a selector that goes on once."""
    row = run.rows[0]
    run.table = lambda cascade, params, images, labels: make_table(
        np.full((len(images), 4), 0.75), np.full((len(images), 4), 2), labels
    )
    run.table_policy = lambda seed, number: number
    run.table_ppo = lambda cascade: None
    run.settings.rounds = 0
    actions = np.array([[1, 1, 0, 0]] * 3)
    monkeypatch.setattr(report, "selector_actions", lambda cascade, ppo, policy, table, weight: actions)
    images = np.zeros((3, 16, 16, 1), np.float32)
    panels = report.user_panels(run, row, 0, images, ["a.png", "b.png", "c.png"])
    assert [panel.caption for panel in panels] == ["a.png: cat", "b.png: cat", "c.png: cat"]
    assert all(len(panel.answers) == 2 and panel.label is None for panel in panels)
    monkeypatch.setattr(report, "read_user_images", lambda *_: (images, ["a.png", "b.png", "c.png"]))
    report.write_cascade_report(run, user_images=("a.png",))
    assert (tmp_path / "show/user_images.png").exists()
    assert "Your images: PRANCE, 33 %" in (tmp_path / "report.html").read_text()
