"""The part of the command `benchmark` that measures serving."""

from __future__ import annotations

import argparse

from prance_jax.core.errors import UserError


def _serving_speed(options: argparse.Namespace, config, spec, params) -> int:
    from prance_jax.benchmarks import serving

    buckets = serving.random_weights_buckets(spec, spec.space.first_group(config.model.first_group))
    work = lambda typed, batch: serving.even_work(typed, batch)
    rows = _measured(options, buckets, params, work)
    weights = "random weights, an even spread of plans: equally many images on each, half of them on one level throughout"
    return _saved(options, rows, weights, buckets)


def _trained_speed(options: argparse.Namespace) -> int:
    import dataclasses
    from pathlib import Path

    from prance_jax.benchmarks import serving
    from prance_jax.benchmarks.accuracy import served_accuracies
    from prance_jax.experiments.experiment import Experiment
    from prance_jax.results.plots import plot_speed
    from prance_jax.serving.load import load
    from prance_jax.training.metrics import Progress
    from prance_jax.training.workdir import Workdir

    workdir, model = Workdir(options.workdir), load(options.workdir)
    experiment = Experiment(workdir.config(), workdir, Progress(quiet=True), train=False)
    images, budget = experiment.source.split("test").images, options.budget
    if model.budget_table is not None and budget is None:
        budget = sum(model.budget_table.range) / 2
    work = lambda typed, batch: serving.trained_work(
        dataclasses.replace(model, buckets=typed), images, batch, budget
    )
    rows = _measured(options, model.buckets, model.params, work)
    kept = next(row.macs_kept for row in reversed(rows) if row.method == "adaptive")
    found = served_accuracies(experiment, model, kept, budget)
    rows = [dataclasses.replace(row, top1=found.get(row.method)) for row in rows]
    for method, top1 in found.items():
        print(f"{method:10} {100 * top1:.2f} % right of {len(images)} test images")
    weights = f"trained weights of {options.workdir}" + ("" if budget is None else f", budget {budget:.2f}")
    status = _saved(options, rows, weights, model.buckets)
    plot_speed(rows, Path(options.out) / "accuracy_speed.png", weights)
    print(f"picture: {options.out}/accuracy_speed.png")
    return status


def _measured(options: argparse.Namespace, buckets, params, work) -> list:
    """All rows, printed as they come. work: (plans, batch) -> `serving_speed.Work`."""
    from prance_jax.benchmarks import serving

    batches, rows = _numbers(options.batches, "--batches"), []
    print(
        f"{'method':10} {'batch':>5} {'type':9} {'img/s':>8} {'ms':>9} {'MACs %':>7} {'speed-up':>8} {'real. %':>8} {'MB':>7}"
    )
    for dtype in options.dtypes.split(","):
        typed = serving.with_dtype(buckets, dtype)
        for batch in batches:
            for row in serving.measure_serving(
                typed,
                params,
                work=lambda own, typed=typed: work(typed, own),
                batches=(batch,),
                repeats=options.repeats,
            ):
                rows.append(row)
                memory = "-" if row.peak_mb is None else f"{row.peak_mb:,.0f}"
                print(
                    f"{row.method:10} {row.batch:5} {row.dtype:9} {row.images_per_s:8.1f} {row.latency_ms:9.1f} "
                    f"{100 * row.macs_kept:7.1f} {row.speedup:8.2f} {100 * row.realised_share:8.1f} {memory:>7}",
                    flush=True,
                )
    return rows


def _saved(options: argparse.Namespace, rows: list, weights: str, buckets) -> int:
    from prance_jax.benchmarks import serving
    from prance_jax.results.table import hardware

    header = {"hardware": hardware(), "command": options.line, "weights": weights}
    serving.save_speeds(rows, header, options.out, buckets)
    print(f"{weights}\n{header['hardware']}\nresults: {options.out}/benchmark.json and benchmark.csv")
    return 0


def _numbers(text: str, option: str) -> tuple[int, ...]:
    try:
        numbers = tuple(int(word) for word in text.split(","))
    except ValueError:
        numbers = ()
    if not numbers or min(numbers) < 1:
        raise UserError(f"{option} {text!r} is not a list of positive whole numbers, such as 1,8,64")
    return numbers
