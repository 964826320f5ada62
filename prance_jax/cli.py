"""One door: python -m prance_jax COMMAND --config configs/NAME.py --workdir DIR [--config.a.b=value]."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from pathlib import Path
from typing import Callable, Sequence

from prance_jax.errors import UserError


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit status. What a user can mend is told in one line, with status 2."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    overrides = [word for word in arguments if word.startswith("--config.")]
    options = _parser().parse_args([word for word in arguments if not word.startswith("--config.")])
    options.overrides = overrides
    options.line = "python -m prance_jax " + shlex.join(arguments)
    try:
        return options.run(options)
    except UserError as error:
        print(f"prance_jax: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("prance_jax: stopped; the same command continues from the last checkpoint", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m prance_jax",
        description="Vision Transformers that spend compute per image.",
        epilog="Any value of the config can be set by --config.a.b=value, for example --config.meta.steps=500.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run, text: str, workdir: bool = True) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(run=run)
        sub.add_argument(
            "--config",
            required=name == "train",
            help="a file with get_config(), such as configs/digits.py",
        )
        if workdir:
            sub.add_argument("--workdir", required=True, help="folder of checkpoints, metrics and results")
        sub.add_argument("--quiet", action="store_true", help="no progress, only the table")
        return sub

    train = command(
        "train", _train, "trains all stages, evaluates, prints the table; continues where it was stopped"
    )
    train.add_argument("--stage", choices=("all", "dense", "meta", "selector", "finetune"), default="all")
    command("evaluate", _evaluate, "evaluates a trained workdir again and prints the table")
    export = command("export", _export, "writes a trained workdir as one file that runs by JAX alone")
    export.add_argument("--out", required=True, help="the file, say model.prance")
    export.add_argument("--seed", type=int, help="of the run; the first one by default")
    export.add_argument("--token-mode", help="of the run; the first one by default")
    profile = command(
        "profile", _profile, "times every plan on this device, for latency-aware rewards", workdir=False
    )
    profile.add_argument(
        "--workdir", help="a trained workdir, for its plans; by default an even spread of plans"
    )
    profile.add_argument("--out", required=True, help="the file, say latency.json")
    profile.add_argument("--batch", type=int, default=16, help="images that run together")
    profile.add_argument("--repeats", type=int, default=9)
    benchmark = command("benchmark", _benchmark, "measures speed on this machine", workdir=False)
    benchmark.add_argument(
        "--measure",
        choices=("serving", "dense", "rollout", "contract"),
        default="serving",
        help="serving: dense, masked and adaptive execution, ToMe and EViT, on random weights; dense: the dense network "
        "against PyTorch's timm; rollout: stage two against a plain loop; contract: how often a trained workdir's is broken",
    )
    benchmark.add_argument("--batches", default="1,8,64,256", help="batch sizes")
    benchmark.add_argument("--dtypes", default="float32,bfloat16", help="types of serving's computation")
    benchmark.add_argument(
        "--out", default="runs/benchmark", help="folder of serving's benchmark.json and .csv"
    )
    benchmark.add_argument("--repeats", type=int, default=7)
    benchmark.add_argument("--workdir", help="of contract: a workdir trained with selector.prices")
    benchmark.add_argument(
        "--eps", type=float, default=0.01, help="of contract: largest share of disagreements"
    )
    benchmark.add_argument("--delta", type=float, default=0.1, help="of contract: how often it may be broken")
    return parser


def _train(options: argparse.Namespace) -> int:
    from prance_jax import config_io
    from prance_jax.config import Config
    from prance_jax.training.experiment import STAGES
    from prance_jax.training.workdir import Workdir

    config = config_io.load(options.config, Config, options.overrides)
    workdir = Workdir(options.workdir)
    if workdir.claim(config_io.to_dict(config), options.line):
        print(f"continuing in {workdir.path}", file=sys.stderr)
    if options.stage == "all":
        return _report(options, config, workdir, train=True)
    experiment = _experiment(options, config, workdir, train=True)
    experiment.run(options.stage)
    following = STAGES[STAGES.index(options.stage) + 1 :]
    print(
        f"stage {options.stage} is done in {workdir.path}; "
        + (f"next: --stage {following[0]}" if following else "next: evaluate")
    )
    return 0


def _evaluate(options: argparse.Namespace) -> int:
    from prance_jax import config_io
    from prance_jax.config import Config
    from prance_jax.training.workdir import Workdir

    workdir = Workdir(options.workdir)
    if options.config:
        config = config_io.load(options.config, Config, options.overrides)
        lines = config_io.differences(config, config_io.from_dict(Config, workdir.config()))
        if lines:
            raise UserError(
                f"workdir {workdir.path} belongs to another configuration ({'; '.join(lines)}); leave --config out"
            )
    else:
        config = config_io.from_dict(Config, workdir.config())
    return _report(options, config, workdir, train=False)


def _report(options: argparse.Namespace, config, workdir, train: bool) -> int:
    from prance_jax.report.compare import compare
    from prance_jax.report.plot import plot
    from prance_jax.report.results import table

    experiment = _experiment(options, config, workdir, train)
    for results in compare(experiment, options.line, _clock(workdir)):
        results.save(workdir.path)
    plot(results, workdir.path / "accuracy.png")
    print(table(results))
    print(
        f"results: {workdir.path}/results.json and results.md, accuracy.png; metrics: {workdir.metrics_file}; "
        f"checkpoints: {workdir.checkpoints}"
    )
    return 0


def _clock(workdir) -> Callable[[], float]:
    """Seconds of all sessions of a workdir so far, those that were stopped after a seed included."""
    from prance_jax.training.workdir import write_atomic

    file, start = workdir.path / "seconds.json", time.monotonic()
    before = json.loads(file.read_text()) if file.exists() else 0.0

    def spent() -> float:
        seconds = before + time.monotonic() - start
        write_atomic(file, json.dumps(seconds))
        return seconds

    return spent


def _experiment(options: argparse.Namespace, config, workdir, train: bool):
    from prance_jax.training.experiment import Experiment
    from prance_jax.training.metrics import Progress

    return Experiment(config, workdir, Progress(quiet=options.quiet), train=train)


def _export(options: argparse.Namespace) -> int:
    from prance_jax import config_io
    from prance_jax.config import Config
    from prance_jax.inference.export import export
    from prance_jax.inference.load import load
    from prance_jax.report import results
    from prance_jax.training.experiment import load_source
    from prance_jax.training.workdir import Workdir

    workdir = Workdir(options.workdir)
    config = config_io.from_dict(Config, workdir.config())
    model = load(workdir.path, seed=options.seed, token_mode=options.token_mode)
    source = load_source(config.data)
    seed = config.seeds[0] if options.seed is None else options.seed
    method = f"prance_{model.spec.token_optimization}"
    facts = {
        "preprocessing": {"pixels": "0 to 1", "mean": float(source.mean), "std": float(source.std)},
        "labels": [str(label) for label in range(source.num_classes)],
        "config": config.name,
        "seed": seed,
        "measured": None,
    }
    if (workdir.path / "results.json").exists():
        found = results.load(workdir.path)
        rows = [vars(row) for row in found.rows if (row.method, row.seed) == (method, seed)]
        facts["measured"] = {"hardware": found.hardware, "images": found.images, "rows": rows}
    card = export(model, options.out, facts)
    size = Path(options.out).stat().st_size / 2**20
    print(f"{options.out}: {size:.1f} MB, for {', '.join(card['platforms'])}, any batch size")
    return 0


def _profile(options: argparse.Namespace) -> int:
    import jax

    from prance_jax import config_io
    from prance_jax.config import Config
    from prance_jax.inference.load import load
    from prance_jax.models import walk
    from prance_jax.models.vit import ViT
    from prance_jax.report.profile import measure
    from prance_jax.report.results import hardware
    from prance_jax.report.serving_speed import random_weights_plans
    from prance_jax.training.experiment import load_source
    from prance_jax.training.workdir import write_atomic

    if (options.workdir is None) == (options.config is None):
        raise UserError("profile: give a trained --workdir, or a --config for an even spread of plans")
    if options.workdir is not None:
        model = load(options.workdir)
        plans, params = model.plans, model.params
    else:
        config = config_io.load(options.config, Config, options.overrides)
        spec = config.spec(load_source(config.data), config.token_modes[0])
        plans = random_weights_plans(spec, spec.space.first_group(config.model.first_group))
        params = walk.init(ViT(spec), jax.random.key(1))
    table = measure(plans, params, hardware(), options.batch, options.repeats)
    table.save(options.out, write_atomic)
    print(f"dense {table.dense:.3f} ms an image; group 0 {table.first:.3f} ms")
    for group, (own, times) in enumerate(zip(plans.groups, table.groups), start=1):
        for plan, row in zip(own, times):
            spans = ", ".join(f"{time:.3f}" for time in row)
            print(
                f"group {group}: widths {plan.widths}, hidden {plan.hidden}, tokens {plan.tokens}: {spans} ms"
            )
    print(f"{options.out}: times per image in batches of {options.batch}, one per plan of the group before")
    return 0


def _benchmark(options: argparse.Namespace) -> int:
    import jax

    from prance_jax import config_io
    from prance_jax.config import Config
    from prance_jax.models import walk
    from prance_jax.models.vit import ViT
    from prance_jax.training.experiment import load_source

    if options.measure == "contract":
        return _contract(options)
    if options.config is None:
        raise UserError(
            f"benchmark --measure {options.measure} needs a --config, such as configs/imagenet_tiny.py"
        )
    config = config_io.load(options.config, Config, options.overrides)
    source = load_source(config.data)
    spec = config.spec(source, config.token_modes[0])
    if options.measure == "dense":
        return _dense_speed(options, spec)
    params = walk.init(ViT(spec), jax.random.key(1))
    if options.measure == "rollout":
        return _rollout_speed(options, config, source, spec, params)
    return _serving_speed(options, config, spec, params)


def _rollout_speed(options: argparse.Namespace, config, source, spec, params) -> int:
    import jax
    import jax.numpy as jnp

    from prance_jax.report.results import hardware
    from prance_jax.report.rollout_speed import measure
    from prance_jax.selector.process import Context
    from prance_jax.training.select import Selector

    selector = Selector(spec, config.selector, spec.space.first_group(config.model.first_group))
    images, labels = source.sample(source.tables, jax.random.key(0), config.selector.batch)
    context = Context(params, images, labels, jnp.zeros((len(labels), spec.num_classes)), jnp.float32(0))
    figures = measure(selector, context, jax.random.key(2), options.repeats)
    header = {"hardware": hardware(), "weights": "random", "command": options.line}
    print(json.dumps({**figures, **header}, indent=1))
    return 0


def _contract(options: argparse.Namespace) -> int:
    import numpy as np

    from prance_jax import config_io
    from prance_jax.config import Config
    from prance_jax.data.source import Split
    from prance_jax.inference.load import load
    from prance_jax.report.contract_check import check
    from prance_jax.training.experiment import load_source
    from prance_jax.training.workdir import Workdir

    if options.workdir is None:
        raise UserError("benchmark --measure contract needs a --workdir trained with selector.prices")
    source = load_source(config_io.from_dict(Config, Workdir(options.workdir).config()).data)
    parts = [source.split(name) for name in ("validation", "test")]
    images, labels = (
        np.concatenate([getattr(part, name) for part in parts]) for name in ("images", "labels")
    )
    found = check(load(options.workdir), Split(images, labels, {}), options.eps, options.delta)
    print(json.dumps({**found, "command": options.line}, indent=1))
    return 0


def _dense_speed(options: argparse.Namespace, spec) -> int:
    from prance_jax.report.dense_speed import measure
    from prance_jax.report.results import hardware

    rows = measure(spec, _numbers(options.batches, "--batches"), options.repeats)
    print(json.dumps({"rows": rows, "hardware": hardware(), "command": options.line}, indent=1))
    return 0


def _serving_speed(options: argparse.Namespace, config, spec, params) -> int:
    from prance_jax.report import serving_speed
    from prance_jax.report.results import hardware

    batches = _numbers(options.batches, "--batches")
    plans = serving_speed.random_weights_plans(spec, spec.space.first_group(config.model.first_group))
    rows = []
    print(
        f"{'method':10} {'batch':>5} {'type':9} {'img/s':>8} {'ms':>9} {'MACs %':>7} {'speed-up':>8} {'real. %':>8} {'MB':>7}"
    )
    for dtype in options.dtypes.split(","):
        typed = serving_speed.with_dtype(plans, dtype)
        for batch in batches:
            for row in serving_speed.measure(typed, params, batches=(batch,), repeats=options.repeats):
                rows.append(row)
                memory = "-" if row.peak_mb is None else f"{row.peak_mb:,.0f}"
                print(
                    f"{row.method:10} {row.batch:5} {row.dtype:9} {row.images_per_s:8.1f} {row.latency_ms:9.1f} "
                    f"{100 * row.macs_kept:7.1f} {row.speedup:8.2f} {100 * row.realised_share:8.1f} {memory:>7}",
                    flush=True,
                )
    weights = "random weights, an even spread of plans: equally many images on each, half of them on one level throughout"
    header = {"hardware": hardware(), "command": options.line, "weights": weights}
    serving_speed.save(rows, header, options.out, plans)
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
