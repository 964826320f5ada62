"""The commands `train`, `evaluate` and `show`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from prance_jax.commands.common import AddCommand, add_distributed, open_experiment, run_clock, try_save
from prance_jax.core.errors import WriteError

_TRAIN = """\
Trains all stages, evaluates on the test images and prints the table. The stages are: dense (the dense
network), meta (stage one, the meta-network), selector (stage two), finetune (stage three).

Stop it in any way and start the same command again: it continues from the last checkpoint, and the
result is bit-identical to a run without the stop. Ctrl-C and SIGTERM save a checkpoint first. The same
command with --config.seeds=0,1,2 adds the seeds that are missing. These may change as well:
data.folder.path, data.tfds.data_dir, data.images.threads, evaluation.batch, evaluation.chunk,
evaluation.speed_seconds, checkpoint_seconds and mesh; see training/workdir.py. One process at a time may
train in a workdir.

It writes results.json and results.md, accuracy.png, and report.html with its pictures in show/. A
picture that cannot be drawn does not stop the run; the last line gives the reason. Metrics are JSON
lines in metrics.jsonl, and in tensorboard/ if tensorboardX is installed.

Images from a folder: with --config.data.images.in_memory=false they are read ahead from disk,
--config.data.images.on_bad_image=skip leaves out unreadable ones and counts them in one warning, and
--config.data.folder.limit=N uses N of them, to measure speed."""
_EVALUATE = """\
Evaluates a trained workdir on the test images again, writes results.json, results.md and accuracy.png,
and prints the table. It trains nothing, and needs no --config: the workdir has its own."""
_SHOW = """\
Draws what a trained workdir decides and how it learned: pictures in show/ and report.html, one page for
a browser. By default it shows all token modes of the first seed, and of several budgets the middle one. Run evaluate first for the table in the page. It needs no --config."""


def add_commands(add_command: AddCommand) -> None:
    """Adds `train`, `evaluate` and `show`."""
    command = add_command(
        "train",
        train,
        "train all stages, evaluate, print the table",
        _TRAIN,
        "--config configs/digits.py --workdir runs/digits --config.seeds=0,1",
    )
    command.add_argument(
        "--stage",
        choices=("all", "dense", "meta", "selector", "finetune"),
        default="all",
        help="train one stage only, without evaluation; stages before it that are missing are trained first",
    )
    add_distributed(command)
    command = add_command(
        "evaluate",
        evaluate,
        "evaluate a trained workdir again",
        _EVALUATE,
        "--workdir runs/digits",
    )
    add_distributed(command)
    command = add_command(
        "show",
        show,
        "draw what it decides and how it learned",
        _SHOW,
        "--workdir runs/digits --images my.jpg my_folder",
    )
    command.add_argument(
        "--images", nargs="+", default=(), metavar="PATH", help="images of yours to show, files or folders"
    )
    command.add_argument(
        "--mode", "--token-mode", dest="token_mode", help="token mode of the run; all by default"
    )
    command.add_argument("--seed", type=int, help="seed of the run; the first by default")
    command.add_argument(
        "--budget", type=float, help="share of the dense MACs, for a selector of all budgets, such as 0.5"
    )


def train(options: argparse.Namespace) -> int:
    """Trains one stage, or all stages and evaluates; continues what is there."""
    from prance_jax.core.sharding import init_distributed
    from prance_jax.experiments.experiment import STAGES

    init_distributed(options.distributed)
    experiment = open_experiment(options, train=True)
    if options.stage == "all":
        return _report(options, experiment, train=True)
    experiment.run(options.stage)
    following = STAGES[STAGES.index(options.stage) + 1 :]
    print(
        f"stage {options.stage} is done in {experiment.workdir.path}; "
        + (f"next: --stage {following[0]}" if following else "next: evaluate")
    )
    return 0


def evaluate(options: argparse.Namespace) -> int:
    """Evaluates a trained workdir again.

    Raises:
      UserError: the workdir belongs to another configuration, or a stage is missing.
    """
    from prance_jax.core.sharding import init_distributed

    init_distributed(options.distributed)
    return _report(options, open_experiment(options), train=False)


def _report(options: argparse.Namespace, experiment, train: bool) -> int:
    from prance_jax.core.sharding import is_main_process
    from prance_jax.results.evaluate_cascade import evaluate_cascade
    from prance_jax.results.evaluate_rows import evaluate_rows
    from prance_jax.results.table import format_table, save_results

    workdir = experiment.workdir
    evaluate = evaluate_rows if experiment.config.cascade is None else evaluate_cascade
    for results in evaluate(experiment, options.line, run_clock(workdir)):
        problem = try_save(save_results, results, workdir.path)
    if not is_main_process():
        return 0
    print(format_table(results))
    if problem is not None:
        print(f"prance_jax: {problem}", file=sys.stderr)
        return 0
    print(_last_line(workdir, write_pictures(experiment, train)))
    return 0


def write_pictures(experiment, everything: bool) -> str:
    """Draws the pictures of a run and returns where they are; a failure is returned as text.

    Args:
      experiment: a trained workdir with results.json.
      everything: whether to write the report with all pictures, else accuracy.png alone.
    """
    from prance_jax.results.plots import plot_results
    from prance_jax.results.rows import load_results

    try:
        if everything:
            write_report = _report_writer(experiment)  # its libraries may be missing
            return f"{write_report(experiment)}, pictures in {experiment.workdir.path / 'show'}"
        plot_results(load_results(experiment.workdir.path), experiment.workdir.path / "accuracy.png")
        return "the show command draws it again"
    except Exception as error:  # whatever goes wrong, the trained run must not fail
        return f"not drawn ({type(error).__name__}: {error})"


def _report_writer(experiment) -> Callable[..., Path]:
    """The function that writes the report of a workdir."""
    if experiment.config.cascade is None:
        from prance_jax.visualize.report import write_report

        return write_report
    from prance_jax.visualize.cascade.report import write_cascade_report

    return write_cascade_report


def _last_line(workdir, report: str) -> str:
    """The last line of a run: where everything is."""
    events = f"; TensorBoard: {workdir.events}" if workdir.events.exists() else ""
    return (
        f"report: {report}; results: {workdir.path}/results.json and results.md, accuracy.png; "
        f"metrics: {workdir.metrics_file}{events}; checkpoints: {workdir.checkpoints}"
    )


def show(options: argparse.Namespace) -> int:
    """Draws the pictures and the report of a trained workdir.

    Raises:
      WriteError: they cannot be written; the stored table is printed then.
    """
    from prance_jax.results.rows import stored_results
    from prance_jax.results.table import format_table

    experiment = open_experiment(options)
    try:
        path = _report_writer(experiment)(
            experiment,
            seed=options.seed,
            mode=options.token_mode,
            budget=options.budget,
            user_images=options.images,
        )
    except WriteError:
        if (results := stored_results(experiment.workdir.path)) is not None:
            print(format_table(results))
        raise
    print(f"{path}: open it in a browser; its pictures as PNG files: {path.parent / 'show'}")
    return 0
