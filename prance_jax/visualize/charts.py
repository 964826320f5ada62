"""Charts of a run: what was decided for which class, what it cost, and how every stage learned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from prance_jax.spec.search_space import SearchSpace
from prance_jax.visualize.trace import Trace

# Of Okabe and Ito (2008), as in `report.plot`.
BLUE, ORANGE, GREEN, RED, GREY, PINK = "#0072b2", "#e69f00", "#009e73", "#d55e00", "#7f7f7f", "#cc79a7"
_MOST_CLASSES = 20
_COLOURS = {
    "accuracy": BLUE,
    "correct": BLUE,
    "macs_kept": RED,
    "accuracy_smallest": GREEN,
    "accuracy_random": ORANGE,
    "loss": BLUE,
    "reward": BLUE,
}
_NAMES = {
    "accuracy": "accuracy",
    "accuracy_smallest": "accuracy, smallest structure",
    "accuracy_random": "accuracy, random structures",
    "correct": "accuracy",
    "macs_kept": "MACs spent",
}
_STAGES = (
    ("dense", "dense network, for comparison"),
    ("meta", "stage one: the meta-network"),
    ("selector", "stage two: the selector"),
    ("finetune", "stage three: fine-tuning under the selector"),
)


def plot_macs(found: Trace, labels: np.ndarray, classes: Sequence[str]) -> Any:
    """A figure: how many images spend how many MACs, right and wrong ones apart; and what each class spends."""
    share, right = 100 * found.macs_kept, found.predicted == labels
    figure = _figure(10, 4.2)
    left, middle = figure.subplots(1, 2)
    low, high = np.floor(share.min()), np.ceil(share.max())
    edges = np.linspace(low, max(high, low + 1), 25)
    left.hist([share[right], share[~right]], edges, stacked=True, color=(BLUE, RED), label=("right", "wrong"))
    left.axvline(share.mean(), color="black", linewidth=1, linestyle="--", label=f"mean {share.mean():.1f} %")
    left.set(xlabel="MACs spent, % of the dense network", ylabel="images", title="MACs of each image")
    left.legend(frameon=False)

    shown = _shown(share, labels, len(classes))
    parts = [share[labels == own] for own in shown]
    if parts:
        boxes = middle.boxplot(
            parts, orientation="horizontal", whis=(5, 95), showfliers=False, patch_artist=True, widths=0.62
        )
        for box in boxes["boxes"]:
            box.set(facecolor="#9ecae1", edgecolor=BLUE)
        for line in boxes["medians"]:
            line.set(color="black", linewidth=1.6)
        middle.set_yticks(range(1, len(shown) + 1), [_short(classes[own]) for own in shown])
        middle.invert_yaxis()
    middle.set(xlabel="MACs spent, % of the dense network", title=f"by class{_which(shown, classes)}")
    for panel in (left, middle):
        _plain(panel)
    return figure


def plot_decisions(
    found: Trace,
    labels: np.ndarray,
    classes: Sequence[str],
    space: SearchSpace,
    rates: Mapping[str, Sequence[float] | None],
) -> Any:
    """A figure of histograms by class, one column for each decision: the shares of tokens kept, embedding widths and MLP
    ratios that were chosen. Every row of a panel adds up to 100 %.

    rates: of one decision, name -> the keep rates to choose from, None where any number may be chosen; say
      {"prune": (0.5, 1.0)}.
    """
    shown = _shown(100 * found.macs_kept, labels, len(classes))
    rows = [("all", np.ones(len(labels), bool)), *((_short(classes[own]), labels == own) for own in shown)]
    columns = space.groups - 1
    kinds = [*(f"{name}: share of tokens kept" for name in rates), "embedding width", "MLP ratio"]
    figure = _figure(max(6.0, 1.2 + 3.1 * columns), (1.0 + 0.2 * len(rows)) * len(kinds))
    panels = figure.subplots(len(kinds), columns, squeeze=False)
    starts = (*space.first_layers, space.depth)
    for column in range(columns):
        layers = slice(starts[column + 1], starts[column + 2])
        widths = found.widths[:, layers]
        ratios = found.mlp_dims[:, layers] / widths
        nearest = np.abs(ratios[..., None] - np.array(space.ratios)).argmin(axis=-1)
        values = [
            *((found.keep[:, column, index, None], own) for index, own in enumerate(rates.values())),
            (widths, space.widths),
            (np.array(space.ratios)[nearest], space.ratios),
        ]
        for line, (own, choices) in enumerate(values):
            panel = panels[line, column]
            _heat(panel, own, choices, rows if column == 0 else [("", mask) for _, mask in rows])
            span = f"layers {layers.start + 1} to {layers.stop}"
            span = span if layers.stop - layers.start > 1 else f"layer {layers.stop}"
            head = f"decision {column + 1} ({span})\n" if line == 0 else ""
            panel.set_title(head + kinds[line], fontsize=9)
            if column == 0:
                panel.set_ylabel("class", fontsize=8)
    return figure


def plot_learning(lines: Sequence[Mapping[str, Any]]) -> Any | None:
    """A figure of the learning curves of every stage that has lines (see `training.metrics`), all seeds and token modes:
    accuracy and MACs, and beside it the loss or the reward. None where there are none."""
    stages = [
        (title, own)
        for kind, title in _STAGES
        if (own := [line for line in lines if line["stage"].split("/")[-1].split("_")[0] == kind])
    ]
    if not stages:
        return None
    figure = _figure(10, 2.6 * len(stages) + 0.3)
    panels = figure.subplots(len(stages), 2, squeeze=False)
    for (title, own), (left, right) in zip(stages, panels):
        _curves(left, own, [name for name in _NAMES if any(name in line for line in own)], 100)
        _curves(right, own, ["reward" if any("reward" in line for line in own) else "loss"], 1)
        left.set_title(title, fontsize=10, loc="left")
        left.set_ylabel("%")
        left.set_ylim(0, 103)
        left.legend(frameon=False, fontsize=8, loc="lower right")
        right.set_ylabel("reward" if any("reward" in line for line in own) else "loss")
        for panel in (left, right):
            _plain(panel)
    for panel in panels[-1]:
        panel.set_xlabel("step")
    return figure


def _curves(panel: Any, lines: Sequence[Mapping[str, Any]], names: Sequence[str], scale: float) -> None:
    """One line for each metric and run; seeds share a colour and a label, token modes have dashes of their own."""
    runs = list(dict.fromkeys(line["stage"] for line in lines))
    modes = list(dict.fromkeys(_mode(run) for run in runs))
    labelled = set()
    for run in runs:
        for name in names:
            points = [
                (line["step"], scale * line[name])
                for line in lines
                # The smallest and the random structures join in late: until then stage one logs zero for them.
                if line["stage"] == run and line.get(name) is not None and (line[name] or name == "accuracy")
            ]
            if not points:
                continue
            mode = _mode(run)
            label = _NAMES.get(name, name) + (f", {mode}" if len(modes) > 1 else "")
            panel.plot(
                *zip(*points),
                color=_COLOURS.get(name, GREY),
                linestyle=("-", "--", ":", "-.")[modes.index(mode) % 4],
                linewidth=1.3,
                alpha=1 if len(runs) == len(modes) else 0.6,
                marker="." if len(points) < 3 else None,
                label=None if label in labelled else label,
            )
            labelled.add(label)


def _mode(run: str) -> str:
    """seed0/prune/finetune_30 -> prune_30; seed0/meta -> ''."""
    words = run.split("/")
    return "" if len(words) < 3 else "_".join([words[1], *words[2].split("_")[1:]])


def _heat(panel: Any, values: np.ndarray, choices: Sequence[float] | None, rows: Sequence[tuple]) -> None:
    """Shares of each choice among values [N, ...] by row; shares of anything, without choices, are put into ten bins."""
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


def _shown(share: np.ndarray, labels: np.ndarray, classes: int) -> list[int]:
    """The classes to show: those that are there, all in their order or the cheapest and the dearest of many by cost."""
    there = [own for own in range(classes) if (labels == own).any()]
    if len(there) <= _MOST_CLASSES:
        return there
    order = sorted(there, key=lambda own: share[labels == own].mean())
    return [*order[: _MOST_CLASSES // 2], *order[-_MOST_CLASSES // 2 :]]


def _which(shown: Sequence[int], classes: Sequence[str]) -> str:
    many = len(shown) == _MOST_CLASSES < len(classes)
    return f": the {_MOST_CLASSES // 2} cheapest and the {_MOST_CLASSES // 2} dearest" if many else ""


def _short(name: str) -> str:
    return name if len(name) <= 18 else name[:17] + "…"


def _figure(width: float, height: float) -> Any:
    # Not by pyplot, which would keep the figure and choose a backend for the whole process.
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _plain(panel: Any) -> None:
    panel.spines[["top", "right"]].set_visible(False)
    panel.grid(alpha=0.2)
    panel.set_axisbelow(True)
