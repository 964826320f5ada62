"""The command `benchmark`: speeds, and what else is measured on a trained workdir."""

from __future__ import annotations

import argparse
import json

from prance_jax.commands.common import Command
from prance_jax.core.errors import UserError


def arguments(command: Command) -> None:
    """Adds `benchmark`."""
    sub = command("benchmark", benchmark, "measures speed on this machine", workdir=False)
    sub.add_argument(
        "--measure",
        choices=("serving", "dense", "rollout", "contract", "input", "meta"),
        default="serving",
        help="serving: dense, masked and adaptive execution, ToMe and EViT, on random weights; dense: the dense network "
        "against PyTorch's timm; rollout: stage two against a plain loop; contract: how often a trained workdir's is broken; "
        "input: reading pictures against the decoding library alone; meta: accuracy of stage one's largest, smallest and random "
        "structures in a workdir",
    )
    sub.add_argument("--batches", default="1,8,64,256", help="batch sizes")
    sub.add_argument("--dtypes", default="float32,bfloat16", help="types of serving's computation")
    sub.add_argument("--out", default="runs/benchmark", help="folder of serving's benchmark.json and .csv")
    sub.add_argument("--repeats", type=int, default=7)
    sub.add_argument(
        "--workdir",
        help="a trained workdir: of serving, to measure it instead of random weights; of contract, one with selector.prices",
    )
    sub.add_argument("--budget", type=float, help="of serving with a workdir of every budget: which one")
    sub.add_argument("--eps", type=float, default=0.01, help="of contract: largest share of disagreements")
    sub.add_argument("--delta", type=float, default=0.1, help="of contract: how often it may be broken")


def benchmark(options: argparse.Namespace) -> int:
    """Runs the measurement that `options.measure` names and prints it."""
    import jax

    from prance_jax.config import io
    from prance_jax.config.experiment import Config
    from prance_jax.data.load import load_source, stand_in
    from prance_jax.models import forward
    from prance_jax.models.vit import ViT

    if options.measure == "contract":
        return _contract(options)
    if options.measure == "meta":
        return _stage_one(options)
    if options.measure == "serving" and options.workdir is not None:
        return _trained_speed(options)
    if options.config is None:
        raise UserError(
            f"benchmark --measure {options.measure} needs a --config, such as configs/imagenet_tiny.py"
        )
    config = io.load(options.config, Config, options.overrides)
    if options.measure == "input":
        return _input_speed(options, config)
    source = load_source(config.data) if options.measure == "rollout" else stand_in(config.data)
    spec = config.spec(source, config.token_modes[0])
    if options.measure == "dense":
        return _dense_speed(options, spec)
    params = forward.init(ViT(spec), jax.random.key(1))
    if options.measure == "rollout":
        return _rollout_speed(options, config, source, spec, params)
    return _serving_speed(options, config, spec, params)


def _input_speed(options: argparse.Namespace, config) -> int:
    from prance_jax.benchmarks.input import measure
    from prance_jax.results.table import hardware

    if config.data.name not in ("folder", "tfds"):
        raise UserError(
            f"benchmark --measure input is for pictures on disk; this config's data is {config.data.name!r}"
        )
    found = measure(config, config.meta.batch, repeats=options.repeats)
    print(json.dumps({**found, "hardware": hardware(), "command": options.line}, indent=1))
    return 0


def _rollout_speed(options: argparse.Namespace, config, source, spec, params) -> int:
    import jax
    import jax.numpy as jnp

    from prance_jax.benchmarks.rollout import measure
    from prance_jax.results.table import hardware
    from prance_jax.selector.environment import Context
    from prance_jax.training.stages.selector import Selector

    selector = Selector(spec, config.selector, spec.space.first_group(config.model.first_group))
    images, labels = source.sample_plain(source.tables, jax.random.key(0), config.selector.batch)
    context = Context(params, images, labels, jnp.zeros((len(labels), spec.num_classes)), jnp.float32(0))
    figures = measure(selector, context, jax.random.key(2), options.repeats)
    header = {"hardware": hardware(), "weights": "random", "command": options.line}
    print(json.dumps({**figures, **header}, indent=1))
    return 0


def _contract(options: argparse.Namespace) -> int:
    import numpy as np

    from prance_jax.benchmarks.guarantee import check
    from prance_jax.data.load import load_source
    from prance_jax.data.source import Split
    from prance_jax.serving.load import load
    from prance_jax.training.workdir import Workdir

    if options.workdir is None:
        raise UserError("benchmark --measure contract needs a --workdir trained with selector.prices")
    source = load_source(Workdir(options.workdir).config().data)
    parts = [source.split(name) for name in ("validation", "test")]
    images, labels = (
        np.concatenate([getattr(part, name)[:] for part in parts]) for name in ("images", "labels")
    )
    found = check(load(options.workdir), Split(images, labels, {}), options.eps, options.delta)
    print(json.dumps({**found, "command": options.line}, indent=1))
    return 0


def _stage_one(options: argparse.Namespace) -> int:
    from prance_jax.benchmarks.stage_one import accuracies
    from prance_jax.experiments.experiment import Experiment
    from prance_jax.training.metrics import Progress
    from prance_jax.training.workdir import Workdir

    if options.workdir is None:
        raise UserError("benchmark --measure meta needs a --workdir in which stage one is trained")
    workdir = Workdir(options.workdir)
    config = workdir.config()
    experiment = Experiment(config, workdir, Progress(quiet=True), train=False)
    found = {f"seed{seed}": accuracies(experiment, seed) for seed in config.seeds}
    print(json.dumps({"top1": found, "steps": config.meta.steps, "command": options.line}, indent=1))
    return 0


def _dense_speed(options: argparse.Namespace, spec) -> int:
    from prance_jax.benchmarks.dense import measure
    from prance_jax.results.table import hardware

    rows = measure(spec, _numbers(options.batches, "--batches"), options.repeats)
    print(json.dumps({"rows": rows, "hardware": hardware(), "command": options.line}, indent=1))
    return 0


def _serving_speed(options: argparse.Namespace, config, spec, params) -> int:
    from prance_jax.benchmarks import serving

    plans = serving.random_weights_plans(spec, spec.space.first_group(config.model.first_group))
    work = lambda typed, batch: serving.even_work(typed, batch)
    rows = _measured(options, plans, params, work)
    weights = "random weights, an even spread of plans: equally many images on each, half of them on one level throughout"
    return _saved(options, rows, weights, plans)


def _trained_speed(options: argparse.Namespace) -> int:
    import dataclasses
    from pathlib import Path

    from prance_jax.benchmarks import serving
    from prance_jax.benchmarks.accuracy import accuracies
    from prance_jax.experiments.experiment import Experiment
    from prance_jax.results.plots import plot_speed
    from prance_jax.serving.load import load
    from prance_jax.training.metrics import Progress
    from prance_jax.training.workdir import Workdir

    workdir, model = Workdir(options.workdir), load(options.workdir)
    experiment = Experiment(workdir.config(), workdir, Progress(quiet=True), train=False)
    images, budget = experiment.source.split("test").images, options.budget
    if model.ladder is not None and budget is None:
        budget = sum(model.ladder.range) / 2
    work = lambda typed, batch: serving.trained_work(
        dataclasses.replace(model, plans=typed), images, batch, budget
    )
    rows = _measured(options, model.plans, model.params, work)
    kept = next(row.macs_kept for row in reversed(rows) if row.method == "adaptive")
    found = accuracies(experiment, model, kept, budget)
    rows = [dataclasses.replace(row, top1=found.get(row.method)) for row in rows]
    for method, top1 in found.items():
        print(f"{method:10} {100 * top1:.2f} % right of {len(images)} test images")
    weights = f"trained weights of {options.workdir}" + ("" if budget is None else f", budget {budget:.2f}")
    status = _saved(options, rows, weights, model.plans)
    plot_speed(rows, Path(options.out) / "accuracy_speed.png", weights)
    print(f"picture: {options.out}/accuracy_speed.png")
    return status


def _measured(options: argparse.Namespace, plans, params, work) -> list:
    """All rows, printed as they come. work: (plans, batch) -> `serving_speed.Work`."""
    from prance_jax.benchmarks import serving

    batches, rows = _numbers(options.batches, "--batches"), []
    print(
        f"{'method':10} {'batch':>5} {'type':9} {'img/s':>8} {'ms':>9} {'MACs %':>7} {'speed-up':>8} {'real. %':>8} {'MB':>7}"
    )
    for dtype in options.dtypes.split(","):
        typed = serving.with_dtype(plans, dtype)
        for batch in batches:
            for row in serving.measure(
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


def _saved(options: argparse.Namespace, rows: list, weights: str, plans) -> int:
    from prance_jax.benchmarks import serving
    from prance_jax.results.table import hardware

    header = {"hardware": hardware(), "command": options.line, "weights": weights}
    serving.save(rows, header, options.out, plans)
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
