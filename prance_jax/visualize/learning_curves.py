"""Draws the learning curves of every stage from the lines of metrics.jsonl."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from prance_jax.visualize.charts import BLUE, GREEN, GREY, ORANGE, RED, new_figure, remove_frame

_COLOURS = {
    "accuracy": BLUE,
    "correct": BLUE,
    "val_accuracy": GREY,
    "macs_kept": RED,
    "accuracy_smallest": GREEN,
    "accuracy_random": ORANGE,
    "loss": BLUE,
    "reward": BLUE,
    "entropy": BLUE,
}
_LABELS = {
    "accuracy": "accuracy",
    "accuracy_smallest": "accuracy, smallest structure",
    "accuracy_random": "accuracy, random structures",
    "correct": "accuracy",
    "val_accuracy": "accuracy, validation images",
    "macs_kept": "MACs spent",
}
_STAGES = (
    ("dense", "dense network, for comparison"),
    ("meta", "stage one: the meta-network"),
    ("selector", "stage two: the selector"),
    ("finetune", "stage three: fine-tuning under the selector"),
)


def plot_learning(lines: Sequence[Mapping[str, Any]]) -> Any | None:
    """Draws accuracy and MACs of every stage, and beside them the loss or the reward.

    A selector that logs neither accuracy nor MACs, that of a cascade, has the entropy of its decisions there.

    Args:
      lines: lines of metrics.jsonl, all seeds and token modes; see `prance_jax.training.metrics`.

    Returns:
      A matplotlib figure; None where no stage has a line.
    """
    stages = [
        (title, stage_lines)
        for name, title in _STAGES
        if (stage_lines := [line for line in lines if _stage(line["stage"]) == name])
    ]
    if not stages:
        return None
    figure = new_figure(10, 2.6 * len(stages) + 0.3)
    panels = figure.subplots(len(stages), 2, squeeze=False)
    for (title, stage_lines), (left, right) in zip(stages, panels):
        names = [name for name in _LABELS if any(name in line for line in stage_lines)]
        objective = "reward" if any("reward" in line for line in stage_lines) else "loss"
        _curves(right, stage_lines, [objective], 1)
        left.set_title(title, fontsize=10, loc="left")
        if names:
            _curves(left, stage_lines, names, 100)
            left.set_ylabel("%")
            left.set_ylim(0, 103)
            left.legend(frameon=False, fontsize=8, loc="lower right")
        else:  # the selector of a cascade
            _curves(left, stage_lines, ["entropy"], 1)
            left.set_ylabel("entropy of the decisions")
        right.set_ylabel(objective)
        for panel in (left, right):
            remove_frame(panel)
    for panel in panels[-1]:
        panel.set_xlabel("step")
    return figure


def _curves(panel: Any, lines: Sequence[Mapping[str, Any]], names: Sequence[str], scale: float) -> None:
    """Draws a line per metric and run; seeds share colour and label, token modes differ in their dashes."""
    runs = list(dict.fromkeys(line["stage"] for line in lines))
    modes = list(dict.fromkeys(_mode(run) for run in runs))
    labelled = set()
    for run in runs:
        for name in names:
            points = [
                (line["step"], scale * line[name])
                for line in lines
                # Smallest and random structures join late; until then stage one logs zero for them.
                if line["stage"] == run and line.get(name) is not None and (line[name] or name == "accuracy")
            ]
            if not points:
                continue
            mode = _mode(run)
            label = _LABELS.get(name, name) + (f", {mode}" if mode and len(modes) > 1 else "")
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


def _stage(run: str) -> str:
    """Name of the stage: seed0/prune/finetune_30 -> finetune."""
    return run.split("/")[-1].split("_")[0]


def _mode(run: str) -> str:
    """Token mode and budget: seed0/prune/finetune_30 -> prune_30; seed0/meta -> ''."""
    words = run.split("/")
    return "" if len(words) < 3 else "_".join([words[1], *words[2].split("_")[1:]])
