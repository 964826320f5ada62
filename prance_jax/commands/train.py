"""The commands of a run: `train`, `evaluate` and `show`."""

from __future__ import annotations

import argparse
import sys

from prance_jax.commands.common import Command, add_distributed, claim_workdir, open_experiment, run_clock
from prance_jax.core.errors import UserError


def arguments(command: Command) -> None:
    """Adds `train`, `evaluate` and `show`."""
    sub = command(
        "train", train, "trains all stages, evaluates, prints the table; continues where it was stopped"
    )
    sub.add_argument("--stage", choices=("all", "dense", "meta", "selector", "finetune"), default="all")
    add_distributed(sub)
    sub = command("evaluate", evaluate, "evaluates a trained workdir again and prints the table")
    add_distributed(sub)
    sub = command(
        "show", show, "draws what a trained workdir decides, and how it learned: pictures and report.html"
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
    from prance_jax.core.sharding import init_distributed
    from prance_jax.experiments.experiment import STAGES
    from prance_jax.training.workdir import Workdir

    init_distributed(options.distributed)
    config = io.load_config(options.config, Config, options.overrides)
    workdir = Workdir(options.workdir)
    if claim_workdir(workdir, config, options.line):
        print(f"continuing in {workdir.path}", file=sys.stderr)
    if options.stage == "all":
        return _report(options, config, workdir, train=True)
    experiment = open_experiment(options, config, workdir, train=True)
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
    from prance_jax.core.sharding import init_distributed
    from prance_jax.training.workdir import Workdir

    init_distributed(options.distributed)
    workdir = Workdir(options.workdir)
    if options.config:
        config = io.load_config(options.config, Config, options.overrides)
        lines = io.differences(config, workdir.config())
        if lines:
            raise UserError(
                f"workdir {workdir.path} belongs to another configuration ({'; '.join(lines)}); leave --config out"
            )
    else:
        config = workdir.config()
    return _report(options, config, workdir, train=False)


def _report(options: argparse.Namespace, config, workdir, train: bool) -> int:
    from prance_jax.core.sharding import is_main_process
    from prance_jax.results.evaluate_rows import evaluate_rows
    from prance_jax.results.table import format_table, save_results

    experiment = open_experiment(options, config, workdir, train)
    for results in evaluate_rows(experiment, options.line, run_clock(workdir)):
        save_results(results, workdir.path)
    if not is_main_process():
        return 0
    print(format_table(results))
    print(_where(workdir, write_pictures(experiment, train)))
    return 0


def write_pictures(experiment, everything: bool) -> str:
    """Draws the pictures, or accuracy.png alone, and says where they are. They must never cost a run: whatever goes wrong is
    told in words."""
    from prance_jax.results.plots import plot_results
    from prance_jax.results.rows import load_results
    from prance_jax.visualize.report import write_report

    try:
        if everything:
            return f"{write_report(experiment)}, pictures in {experiment.workdir.path / 'show'}"
        plot_results(load_results(experiment.workdir.path), experiment.workdir.path / "accuracy.png")
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


def show(options: argparse.Namespace) -> int:
    """Draws the pictures and the report of a trained workdir."""
    from prance_jax.training.workdir import Workdir
    from prance_jax.visualize.report import write_report

    workdir = Workdir(options.workdir)
    config = workdir.config()
    experiment = open_experiment(options, config, workdir, train=False)
    path = write_report(
        experiment,
        seed=options.seed,
        mode=options.token_mode,
        budget=options.budget,
        pictures=options.images,
    )
    print(f"{path}: open it in a browser; its pictures as PNG: {path.parent / 'show'}")
    return 0
