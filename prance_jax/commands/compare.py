"""The commands beside a run of its own: `compare`, `segment` and `pit`."""

from __future__ import annotations

import argparse
import json
from typing import Callable

from prance_jax.commands.common import Command, add_distributed, open_config, open_experiment, run_clock


def arguments(command: Command) -> None:
    """Adds `compare`, `segment` and `pit`."""
    sub = command(
        "compare",
        compare_methods,
        "every method of the field beside PRANCE, as it is and tuned, at the same MACs or measured time",
    )
    add_distributed(sub)
    command("segment", segment, "dense prediction on reduced tokens: the embedded segmentation task")
    command("pit", pit, "a pooling-based ViT (PiT), dense and with SPViT's selectors in each stage")


def compare_methods(options: argparse.Namespace) -> int:
    """Every method beside PRANCE: comparison.json, .md and .png."""
    from prance_jax.core.sharding import init_distributed, is_main_process
    from prance_jax.experiments.comparison import comparison_rows
    from prance_jax.results.comparison_plot import plot_comparison
    from prance_jax.results.evaluate_rows import evaluate_rows
    from prance_jax.results.table import format_table, save_results

    init_distributed(options.distributed)
    config, workdir = open_config(options)
    experiment = open_experiment(options, config, workdir, train=True)
    for results in evaluate_rows(experiment, options.line, run_clock(workdir), comparison_rows):
        save_results(results, workdir.path, "comparison")
    if is_main_process():
        plot_comparison(results, workdir.path / "comparison.png")
        print(format_table(results))
        print(f"results: {workdir.path}/comparison.json, comparison.md and comparison.png")
    return 0


def segment(options: argparse.Namespace) -> int:
    """Token reduction in dense prediction: segmentation.json and .md."""
    from prance_jax.experiments.segmentation import (
        segmentation_experiment,
        segmentation_rows,
        segmentation_table,
    )

    return _rows(
        options,
        "segmentation",
        lambda experiment, seed: segmentation_rows(segmentation_experiment(experiment), seed),
        segmentation_table,
    )


def pit(options: argparse.Namespace) -> int:
    """A PiT with SPViT's selectors: pit.json and .md."""
    from prance_jax.experiments.pit import pit_rows, pit_table

    return _rows(options, "pit", pit_rows, pit_table)


def _rows(options: argparse.Namespace, name: str, rows_of: Callable, table: Callable) -> int:
    """An experiment that makes a table of its own: NAME.json and NAME.md, written after every seed."""
    import dataclasses

    from prance_jax.core.files import write_atomic

    config, workdir = open_config(options)
    experiment, rows = open_experiment(options, config, workdir, train=True), []
    for seed in config.seeds:
        rows += rows_of(experiment, seed)
        record = {"command": options.line, "rows": [dataclasses.asdict(row) for row in rows]}
        write_atomic(workdir.path / f"{name}.json", json.dumps(record, indent=1) + "\n")
        write_atomic(workdir.path / f"{name}.md", table(rows) + "\n")
    print(table(rows))
    print(f"results: {workdir.path}/{name}.json and {name}.md")
    return 0
