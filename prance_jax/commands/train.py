"""The commands of a run: `train`, `evaluate` and `show`."""

from __future__ import annotations

import argparse
import sys

from prance_jax.commands.common import Command, claim, clock, distributed, opened
from prance_jax.core.errors import UserError


def arguments(command: Command) -> None:
    """Adds `train`, `evaluate` and `show`."""
    sub = command(
        "train", train, "trains all stages, evaluates, prints the table; continues where it was stopped"
    )
    sub.add_argument("--stage", choices=("all", "dense", "meta", "selector", "finetune"), default="all")
    distributed(sub)
    sub = command("evaluate", evaluate, "evaluates a trained workdir again and prints the table")
    distributed(sub)
    sub = command(
        "show", draw, "draws what a trained workdir decides, and how it learned: pictures and report.html"
    )
    sub.add_argument(
        "--images", nargs="+", default=(), metavar="PATH", help="pictures of your own, or folders of them"
    )
    sub.add_argument(
        "--mode", "--token-mode", dest="token_mode", help="token mode of the run; all by default"
    )
    sub.add_argument("--seed", type=int, help="of the run; the first one by default")
    sub.add_argument("--budget", type=float, help="of a selector of every budget: share of the dense MACs")


def train(options: argparse.Namespace) -> int:
    """Trains one stage, or all and then evaluates; continues what is there."""
    from prance_jax.config import io
    from prance_jax.config.experiment import Config
    from prance_jax.core.sharding import join
    from prance_jax.experiments.experiment import STAGES
    from prance_jax.training.workdir import Workdir

    join(options.distributed)
    config = io.load(options.config, Config, options.overrides)
    workdir = Workdir(options.workdir)
    if claim(workdir, config, options.line):
        print(f"continuing in {workdir.path}", file=sys.stderr)
    if options.stage == "all":
        return _report(options, config, workdir, train=True)
    experiment = opened(options, config, workdir, train=True)
    experiment.run(options.stage)
    following = STAGES[STAGES.index(options.stage) + 1 :]
    print(
        f"stage {options.stage} is done in {workdir.path}; "
        + (f"next: --stage {following[0]}" if following else "next: evaluate")
    )
    return 0


def evaluate(options: argparse.Namespace) -> int:
    """Evaluates what is trained again. Raises UserError for another configuration than the workdir's."""
    from prance_jax.config import io
    from prance_jax.config.experiment import Config
    from prance_jax.core.sharding import join
    from prance_jax.training.workdir import Workdir

    join(options.distributed)
    workdir = Workdir(options.workdir)
    if options.config:
        config = io.load(options.config, Config, options.overrides)
        lines = io.differences(config, workdir.config())
        if lines:
            raise UserError(
                f"workdir {workdir.path} belongs to another configuration ({'; '.join(lines)}); leave --config out"
            )
    else:
        config = workdir.config()
    return _report(options, config, workdir, train=False)


def _report(options: argparse.Namespace, config, workdir, train: bool) -> int:
    from prance_jax.core.sharding import leads
    from prance_jax.results.evaluate_rows import compare
    from prance_jax.results.table import save_results, table

    experiment = opened(options, config, workdir, train)
    for results in compare(experiment, options.line, clock(workdir)):
        save_results(results, workdir.path)
    if not leads():
        return 0
    print(table(results))
    print(_where(workdir, drawn(experiment, train)))
    return 0


def drawn(experiment, everything: bool) -> str:
    """Draws the pictures, or accuracy.png alone, and says where they are. They must never cost a run: whatever goes wrong is
    told in words."""
    from prance_jax.results.plots import plot
    from prance_jax.results.rows import load
    from prance_jax.visualize.report import show

    try:
        if everything:
            return f"{show(experiment)}, pictures in {experiment.workdir.path / 'show'}"
        plot(load(experiment.workdir.path), experiment.workdir.path / "accuracy.png")
        return "the show command draws it anew"
    except Exception as error:
        return f"not drawn ({type(error).__name__}: {error})"


def _where(workdir, report: str) -> str:
    """The last line of a run: where everything is."""
    events = f"; TensorBoard: {workdir.events}" if workdir.events.exists() else ""
    return (
        f"report: {report}; results: {workdir.path}/results.json and results.md, accuracy.png; "
        f"metrics: {workdir.metrics_file}{events}; checkpoints: {workdir.checkpoints}"
    )


def draw(options: argparse.Namespace) -> int:
    """Draws the pictures and the report of a trained workdir."""
    from prance_jax.training.workdir import Workdir
    from prance_jax.visualize.report import show

    workdir = Workdir(options.workdir)
    config = workdir.config()
    experiment = opened(options, config, workdir, train=False)
    path = show(
        experiment,
        seed=options.seed,
        mode=options.token_mode,
        budget=options.budget,
        pictures=options.images,
    )
    print(f"{path}: open it in a browser; its pictures as PNG: {path.parent / 'show'}")
    return 0
