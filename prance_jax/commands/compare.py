"""The commands `compare`, `segment` and `pit`: other methods and tasks beside PRANCE."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Callable

from prance_jax.commands.common import AddCommand, add_distributed, open_experiment, run_clock, try_save
from prance_jax.core.errors import UserError, WriteError

_COMPARE = """\
Compares the methods of compare.methods with PRANCE at equal MACs, or at equal measured time with
compare.latency_table. It uses the networks that are trained in the workdir, trains what is missing, and
writes comparison.json, comparison.md and comparison.png.

Rows: NAME_50 is the dense network as it is, reduced to 50 % of its MACs; NAME_tuned_50 is fine-tuned;
NAME_free_50 keeps an own token count per image and runs in buckets; with a latency table names end in
_time and the number is a share of the time. spvit_inserted in compare.methods inserts predictors
progressively, which needs many short trainings."""
_SEGMENT = """\
Trains and measures semantic segmentation on reduced tokens, on the embedded digits: the dense network,
the methods of segment.methods, and PRANCE. It writes segmentation.json and segmentation.md, after every
seed."""
_PIT = """\
Trains and measures a pooling-based ViT (PiT), dense and with SPViT's token predictors in each of its
stages. It writes pit.json and pit.md, after every seed."""


def add_commands(add_command: AddCommand) -> None:
    """Adds `compare`, `segment` and `pit`."""
    command = add_command(
        "compare",
        compare_methods,
        "compare other methods with PRANCE at equal MACs or time",
        _COMPARE,
        "--config configs/digits_compare.py --workdir runs/digits_compare",
    )
    add_distributed(command)
    add_command(
        "segment",
        segment,
        "segmentation with reduced tokens",
        _SEGMENT,
        "--config configs/digits.py --workdir runs/digits",
    )
    add_command(
        "pit",
        pit,
        "a pooling-based ViT (PiT) with SPViT's predictors",
        _PIT,
        "--config configs/digits.py --workdir runs/digits",
    )


def compare_methods(options: argparse.Namespace) -> int:
    """Compares all methods with PRANCE: comparison.json, .md and .png."""
    from prance_jax.core.sharding import init_distributed, is_main_process
    from prance_jax.experiments.comparison import comparison_rows
    from prance_jax.results.comparison_plot import plot_comparison
    from prance_jax.results.evaluate_rows import evaluate_rows
    from prance_jax.results.table import format_table, save_results

    init_distributed(options.distributed)
    experiment = open_experiment(options, train=True)
    if experiment.config.cascade is not None:
        raise UserError(
            "compare: a cascade is compared in the table of train; name the methods in cascade.methods, such as tome"
        )
    folder = experiment.workdir.path
    for results in evaluate_rows(experiment, options.line, run_clock(experiment.workdir), comparison_rows):
        problem = try_save(save_results, results, folder, "comparison")
    if is_main_process():
        print(format_table(results))
        problem = problem or try_save(plot_comparison, results, folder / "comparison.png")
        _print_end(problem, f"results: {folder}/comparison.json, comparison.md and comparison.png")
    return 0


def _print_end(problem: WriteError | None, where: str) -> None:
    """The last line: where the results are, or why they are not there."""
    print(where) if problem is None else print(f"prance_jax: {problem}", file=sys.stderr)


def segment(options: argparse.Namespace) -> int:
    """Measures token reduction in segmentation: segmentation.json and .md."""
    from prance_jax.experiments.segmentation import segmentation_experiment, segmentation_rows
    from prance_jax.results.task_tables import segmentation_table

    return _rows(
        options,
        "segmentation",
        lambda experiment, seed: segmentation_rows(segmentation_experiment(experiment), seed),
        segmentation_table,
    )


def pit(options: argparse.Namespace) -> int:
    """Measures a PiT with SPViT's token predictors: pit.json and .md."""
    from prance_jax.experiments.pit import pit_rows
    from prance_jax.results.task_tables import pit_table

    return _rows(options, "pit", pit_rows, pit_table)


def _rows(options: argparse.Namespace, name: str, rows_of: Callable, table: Callable) -> int:
    """Runs an experiment with a table of its own: NAME.json and NAME.md, written after every seed."""
    import dataclasses

    from prance_jax.core.files import write_atomic

    experiment, rows = open_experiment(options, train=True), []
    folder = experiment.workdir.path
    for seed in experiment.config.seeds:
        rows += rows_of(experiment, seed)
        record = {"command": options.line, "rows": [dataclasses.asdict(row) for row in rows]}
        problem = try_save(write_atomic, folder / f"{name}.json", json.dumps(record, indent=1) + "\n")
        problem = problem or try_save(write_atomic, folder / f"{name}.md", table(rows) + "\n")
    print(table(rows))
    _print_end(problem, f"results: {folder}/{name}.json and {name}.md")
    return 0
