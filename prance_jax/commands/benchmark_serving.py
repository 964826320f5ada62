"""The part of the command `benchmark` that measures serving."""

from __future__ import annotations

import argparse

from prance_jax.commands.common import open_experiment
from prance_jax.core.errors import UserError


def random_weights_speed(options: argparse.Namespace, config, spec, params) -> int:
    """Measures serving with random weights and evenly spread buckets.

    Args:
      options: of the command `benchmark`.
      config: the `Config`, for the structure of the first group.
      spec: the network's `ModelSpec`.
      params: random parameters.

    Returns:
      Exit status 0.
    """
    from prance_jax.adaptive.choose_buckets import even_buckets
    from prance_jax.benchmarks import serving

    buckets = even_buckets(spec, spec.space.first_group(config.model.first_group))
    rows = _measure(options, buckets, params, serving.even_work)
    weights = (
        "random weights, an even spread over the buckets: equally many images in each, half of the images in "
        "buckets of one size throughout"
    )
    return _save(options, rows, weights, buckets)


def trained_speed(options: argparse.Namespace) -> int:
    """Measures serving with the weights of a trained workdir, with accuracy and a picture; returns 0."""
    import dataclasses
    from pathlib import Path

    from prance_jax.benchmarks import serving
    from prance_jax.benchmarks.accuracy import served_accuracies
    from prance_jax.results.plots import plot_speed
    from prance_jax.serving.load import load

    experiment = open_experiment(options)
    model = load(options.workdir)
    images, budget = experiment.source.split("test").images, options.budget
    if model.budget_table is not None and budget is None:
        budget = sum(model.budget_table.range) / 2
    work = lambda buckets, batch: serving.trained_work(
        dataclasses.replace(model, buckets=buckets), images, batch, budget
    )
    rows = _measure(options, model.buckets, model.params, work)
    macs_kept = next(row.macs_kept for row in reversed(rows) if row.method == "adaptive")
    accuracies = served_accuracies(experiment, model, macs_kept, budget)
    rows = [dataclasses.replace(row, top1=accuracies.get(row.method)) for row in rows]
    for method, top1 in accuracies.items():
        print(f"{method:10} {100 * top1:.2f} % right of {len(images)} test images")
    weights = f"trained weights of {options.workdir}" + ("" if budget is None else f", budget {budget:.2f}")
    status = _save(options, rows, weights, model.buckets)
    plot_speed(rows, Path(options.out) / "accuracy_speed.png", weights)
    print(f"picture: {options.out}/accuracy_speed.png")
    return status


def cascade_speed(options: argparse.Namespace, spec) -> int:
    """Measures a cascade of two looks with random weights.

    Args:
      options: of the command `benchmark`.
      spec: the network's `ModelSpec`.

    Returns:
      Exit status 0.
    """
    import dataclasses

    from prance_jax.benchmarks import cascade
    from prance_jax.results.table import hardware

    shares, batches, rows = _parse_shares(options.shares), parse_sizes(options.batches, "--batches"), []
    if options.chunk is not None and options.chunk < 1:
        raise UserError(f"--chunk {options.chunk} is not a positive number of images")
    print(cascade.COLUMNS)
    for dtype in options.dtypes.split(","):
        typed = dataclasses.replace(spec, dtype=dtype)
        for batch in batches:
            row = cascade.measure_cascade(
                typed, batch, shares=shares, chunk=options.chunk, repeats=options.repeats
            )
            rows.append(row)
            print(row.line, flush=True)
    weights = f"random weights, shares of the images at the three answers {options.shares}"
    header = {"hardware": hardware(), "command": options.line, "weights": weights}
    cascade.save_cascade_speeds(rows, header, options.out)
    print(f"{weights}\n{header['hardware']}\nresults: {options.out}/benchmark.json")
    return 0


def parse_sizes(text: str, option: str) -> tuple[int, ...]:
    """Reads a list of positive whole numbers.

    Args:
      text: such as "1,8,64".
      option: name of the option, for the error.

    Raises:
      UserError: it is not such a list.
    """
    try:
        sizes = tuple(int(word) for word in text.split(","))
    except ValueError:
        sizes = ()
    if not sizes or min(sizes) < 1:
        raise UserError(f"{option} {text!r} is not a list of positive whole numbers, such as 1,8,64")
    return sizes


def _parse_shares(text: str) -> tuple[float, ...]:
    """Reads the shares of the images at the answers of the cascade."""
    from prance_jax.benchmarks.cascade import ANSWERS

    try:
        shares = tuple(float(word) for word in text.split(","))
    except ValueError:
        shares = ()
    if len(shares) != ANSWERS or not all(share >= 0 for share in shares) or abs(sum(shares) - 1) > 1e-6:
        raise UserError(
            f"--shares {text!r} are not {ANSWERS} shares of the images that add up to 1, such as 0.3,0.4,0.3"
        )
    return shares


def _measure(options: argparse.Namespace, buckets, params, work) -> list:
    """Measures all rows and prints each; work: (buckets, batch) -> `serving.Work`."""
    from prance_jax.benchmarks import serving

    batches, rows = parse_sizes(options.batches, "--batches"), []
    print(
        f"{'method':10} {'batch':>5} {'type':9} {'img/s':>8} {'ms':>9} {'MACs %':>7} {'speed-up':>8} "
        f"{'achieved share %':>16} {'MB':>7}"
    )
    for dtype in options.dtypes.split(","):
        typed = serving.with_dtype(buckets, dtype)
        for batch in batches:
            measured = serving.measure_serving(
                typed,
                params,
                work=lambda size, typed=typed: work(typed, size),
                batches=(batch,),
                repeats=options.repeats,
            )
            for row in measured:
                rows.append(row)
                memory = "-" if row.peak_mb is None else f"{row.peak_mb:,.0f}"
                print(
                    f"{row.method:10} {row.batch:5} {row.dtype:9} {row.images_per_s:8.1f} "
                    f"{row.latency_ms:9.1f} {100 * row.macs_kept:7.1f} {row.speedup:8.2f} "
                    f"{100 * row.realised_share:16.1f} {memory:>7}",
                    flush=True,
                )
    return rows


def _save(options: argparse.Namespace, rows: list, weights: str, buckets) -> int:
    from prance_jax.benchmarks import serving
    from prance_jax.results.table import hardware

    header = {"hardware": hardware(), "command": options.line, "weights": weights}
    serving.save_speeds(rows, header, options.out, buckets)
    print(f"{weights}\n{header['hardware']}\nresults: {options.out}/benchmark.json and benchmark.csv")
    return 0
