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
            required=name != "evaluate",
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
    benchmark = command(
        "benchmark", _benchmark, "measures the jitted rollout against a plain loop", workdir=False
    )
    benchmark.add_argument("--repeats", type=int, default=5)
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
    from prance_jax.report.results import table

    experiment = _experiment(options, config, workdir, train)
    for results in compare(experiment, options.line, _clock(workdir)):
        results.save(workdir.path)
    print(table(results))
    print(
        f"results: {workdir.path}/results.json and results.md; metrics: {workdir.metrics_file}; checkpoints: {workdir.checkpoints}"
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


def _benchmark(options: argparse.Namespace) -> int:
    import jax
    import jax.numpy as jnp

    from prance_jax import config_io
    from prance_jax.config import Config
    from prance_jax.models import walk
    from prance_jax.models.vit import ViT
    from prance_jax.report.results import hardware
    from prance_jax.report.rollout_speed import measure
    from prance_jax.selector.process import Context
    from prance_jax.training.experiment import load_source
    from prance_jax.training.select import Selector

    config = config_io.load(options.config, Config, options.overrides)
    source = load_source(config.data)
    spec = config.spec(source, config.token_modes[0])
    selector = Selector(spec, config.selector, spec.space.first_group(config.model.first_group))
    images, labels = source.sample(source.tables, jax.random.key(0), config.selector.batch)
    params = walk.init(ViT(spec), jax.random.key(1))
    context = Context(params, images, labels, jnp.zeros((len(labels), spec.num_classes)), jnp.float32(0))
    figures = measure(selector, context, jax.random.key(2), options.repeats)
    print(
        json.dumps(
            {**figures, "hardware": hardware(), "weights": "random", "config": str(Path(options.config))},
            indent=1,
        )
    )
    return 0
