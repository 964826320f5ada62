"""One door: python -m prance_jax COMMAND --config configs/NAME.py --workdir DIR [--config.a.b=value]."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from pathlib import Path
from typing import Callable, Sequence

from prance_jax import cli_measure, cli_weights
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
    compare = command(
        "compare",
        _compare,
        "every method of the field beside PRANCE, as it is and tuned, at the same MACs or measured time",
    )
    command("segment", _segment, "dense prediction on reduced tokens: the embedded segmentation task")
    command("pit", _pit, "a pooling-based ViT (PiT), dense and with SPViT's selectors in each stage")
    evaluate = command("evaluate", _evaluate, "evaluates a trained workdir again and prints the table")
    for sub in (train, evaluate, compare):
        sub.add_argument(
            "--distributed",
            metavar="auto|ADDRESS,PROCESSES,INDEX",
            help="this is one of several processes: 'auto' on TPU pods and under SLURM, else say 10.0.0.1:1234,2,0",
        )
    show = command(
        "show", _show, "draws what a trained workdir decides, and how it learned: pictures and report.html"
    )
    show.add_argument(
        "--images", nargs="+", default=(), metavar="PATH", help="pictures of your own, or folders of them"
    )
    show.add_argument(
        "--mode", "--token-mode", dest="token_mode", help="token mode of the run; all by default"
    )
    show.add_argument("--seed", type=int, help="of the run; the first one by default")
    show.add_argument("--budget", type=float, help="of a selector of every budget: share of the dense MACs")
    export = command("export", _export, "writes a trained workdir as one file: a program, or its weights")
    export.add_argument(
        "--out",
        required=True,
        help="model.prance runs by JAX alone; model.safetensors holds weights and a card",
    )
    export.add_argument(
        "--weights",
        choices=("prance", "meta", "dense"),
        default="prance",
        help="of .safetensors: the fine-tuned network, that of stage one, the dense one",
    )
    export.add_argument("--licence", help="of .safetensors: for its card, say apache-2.0")
    cli_weights.names_and_structure(export)
    export.add_argument("--seed", type=int, help="of the run; the first one by default")
    export.add_argument("--token-mode", help="of the run; the first one by default")
    cli_weights.arguments(commands)
    profile = command(
        "profile",
        cli_measure.profile,
        "times every plan, or one layer by its tokens, on this device: for latency-aware rewards and targets",
        workdir=False,
    )
    profile.add_argument(
        "--what",
        choices=("plans", "blocks"),
        default="plans",
        help="plans: of PRANCE's decisions, for selector.latency_table; blocks: one layer by its tokens and the methods of "
        "compare.methods, for compare.latency_table",
    )
    profile.add_argument(
        "--workdir", help="a trained workdir, for its plans; by default an even spread of plans"
    )
    profile.add_argument("--out", required=True, help="the file, say latency.json")
    profile.add_argument("--batch", type=int, default=16, help="images that run together")
    profile.add_argument("--repeats", type=int, default=9)
    pod = command(
        "compile",
        cli_measure.compile_for,
        "does it fit a TPU pod? asks the TPU compiler, needs no TPU",
        False,
    )
    pod.add_argument("--topology", required=True, help="say v5e:2x4, v5e:16x16, v4:2x2x1 or v6e:2x4")
    pod.add_argument("--stage", choices=("all", "meta", "selector", "finetune"), default="all")
    benchmark = command("benchmark", cli_measure.benchmark, "measures speed on this machine", workdir=False)
    benchmark.add_argument(
        "--measure",
        choices=("serving", "dense", "rollout", "contract", "input", "meta"),
        default="serving",
        help="serving: dense, masked and adaptive execution, ToMe and EViT, on random weights; dense: the dense network "
        "against PyTorch's timm; rollout: stage two against a plain loop; contract: how often a trained workdir's is broken; "
        "input: reading pictures against the decoding library alone; meta: accuracy of stage one's largest, smallest and random "
        "structures in a workdir",
    )
    benchmark.add_argument("--batches", default="1,8,64,256", help="batch sizes")
    benchmark.add_argument("--dtypes", default="float32,bfloat16", help="types of serving's computation")
    benchmark.add_argument(
        "--out", default="runs/benchmark", help="folder of serving's benchmark.json and .csv"
    )
    benchmark.add_argument("--repeats", type=int, default=7)
    benchmark.add_argument(
        "--workdir",
        help="a trained workdir: of serving, to measure it instead of random weights; of contract, one with selector.prices",
    )
    benchmark.add_argument(
        "--budget", type=float, help="of serving with a workdir of every budget: which one"
    )
    benchmark.add_argument(
        "--eps", type=float, default=0.01, help="of contract: largest share of disagreements"
    )
    benchmark.add_argument("--delta", type=float, default=0.1, help="of contract: how often it may be broken")
    return parser


def _train(options: argparse.Namespace) -> int:
    from prance_jax import config_io
    from prance_jax.config import Config
    from prance_jax.mesh import join
    from prance_jax.training.experiment import STAGES
    from prance_jax.training.workdir import Workdir

    join(options.distributed)
    config = config_io.load(options.config, Config, options.overrides)
    workdir = Workdir(options.workdir)
    if _claim(workdir, config, options.line):
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


def _claim(workdir, config, line: str) -> bool:
    import functools

    from prance_jax import config_io
    from prance_jax.config import Config

    return workdir.claim(config_io.to_dict(config), line, functools.partial(config_io.completed, Config))


def _compare(options: argparse.Namespace) -> int:
    from prance_jax.mesh import join, leads
    from prance_jax.report.compare import compare
    from prance_jax.report.plot import plot
    from prance_jax.report.results import table
    from prance_jax.training.comparison import comparison

    join(options.distributed)
    config, workdir = _claimed(options)
    experiment = _experiment(options, config, workdir, train=True)
    for results in compare(experiment, options.line, _clock(workdir), comparison):
        results.save(workdir.path, "comparison")
    if leads():
        plot(results, workdir.path / "comparison.png")
        print(table(results))
        print(f"results: {workdir.path}/comparison.json, comparison.md and comparison.png")
    return 0


def _segment(options: argparse.Namespace) -> int:
    from prance_jax.training.segmentation import measured, segmentation, table

    return _rows(
        options, "segmentation", lambda experiment, seed: measured(segmentation(experiment), seed), table
    )


def _pit(options: argparse.Namespace) -> int:
    from prance_jax.training.pit_rows import pit_rows, table

    return _rows(options, "pit", pit_rows, table)


def _rows(options: argparse.Namespace, name: str, rows_of: Callable, table: Callable) -> int:
    """An experiment that makes a table of its own: NAME.json and NAME.md, written after every seed."""
    import dataclasses

    from prance_jax.training.workdir import write_atomic

    config, workdir = _claimed(options)
    experiment, rows = _experiment(options, config, workdir, train=True), []
    for seed in config.seeds:
        rows += rows_of(experiment, seed)
        record = {"command": options.line, "rows": [dataclasses.asdict(row) for row in rows]}
        write_atomic(workdir.path / f"{name}.json", json.dumps(record, indent=1) + "\n")
        write_atomic(workdir.path / f"{name}.md", table(rows) + "\n")
    print(table(rows))
    print(f"results: {workdir.path}/{name}.json and {name}.md")
    return 0


def _claimed(options: argparse.Namespace):
    """The config and its workdir: those of --config, or of the workdir alone."""
    from prance_jax import config_io
    from prance_jax.config import Config
    from prance_jax.training.workdir import Workdir

    workdir = Workdir(options.workdir)
    if not options.config:
        return config_io.from_dict(Config, workdir.config()), workdir
    config = config_io.load(options.config, Config, options.overrides)
    _claim(workdir, config, options.line)
    return config, workdir


def _evaluate(options: argparse.Namespace) -> int:
    from prance_jax import config_io
    from prance_jax.config import Config
    from prance_jax.mesh import join
    from prance_jax.training.workdir import Workdir

    join(options.distributed)
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
    from prance_jax.mesh import leads
    from prance_jax.report.compare import compare
    from prance_jax.report.results import table

    experiment = _experiment(options, config, workdir, train)
    for results in compare(experiment, options.line, _clock(workdir)):
        results.save(workdir.path)
    if not leads():
        return 0
    print(table(results))
    print(_where(workdir, _drawn(experiment, train)))
    return 0


def _drawn(experiment, everything: bool) -> str:
    """Draws the pictures, or accuracy.png alone, and says where they are. They must never cost a run: whatever goes wrong is
    told in words."""
    from prance_jax.report.plot import plot
    from prance_jax.report.results import load
    from prance_jax.show.report import show

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


def _show(options: argparse.Namespace) -> int:
    from prance_jax import config_io
    from prance_jax.config import Config
    from prance_jax.show.report import show
    from prance_jax.training.workdir import Workdir

    workdir = Workdir(options.workdir)
    config = config_io.from_dict(Config, workdir.config())
    experiment = _experiment(options, config, workdir, train=False)
    path = show(
        experiment,
        seed=options.seed,
        mode=options.token_mode,
        budget=options.budget,
        pictures=options.images,
    )
    print(f"{path}: open it in a browser; its pictures as PNG: {path.parent / 'show'}")
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
    from prance_jax.mesh import leads
    from prance_jax.training.experiment import Experiment
    from prance_jax.training.metrics import Progress

    return Experiment(config, workdir, Progress(quiet=options.quiet or not leads()), train=train)


def _export(options: argparse.Namespace) -> int:
    from prance_jax import config_io
    from prance_jax.config import Config
    from prance_jax.inference.export import export
    from prance_jax.inference.load import load
    from prance_jax.training.workdir import Workdir

    config = config_io.from_dict(Config, Workdir(options.workdir).config())
    seed = config.seeds[0] if options.seed is None else options.seed
    if Path(options.out).suffix == ".safetensors":
        return _export_weights(options, config, seed)
    if options.structure is not None or options.names != "prance_jax":
        raise UserError("export: --structure and --names are for weights; say --out NAME.safetensors")
    model = load(options.workdir, seed=options.seed, token_mode=options.token_mode)
    facts = _facts(options.workdir, config, seed, f"prance_{model.spec.token_optimization}")
    card = export(model, options.out, facts)
    size = Path(options.out).stat().st_size / 2**20
    print(f"{options.out}: {size:.1f} MB, for {', '.join(card['platforms'])}, any batch size")
    return 0


def _export_weights(options: argparse.Namespace, config, seed: int) -> int:
    from prance_jax.training.experiment import Experiment
    from prance_jax.training.metrics import Progress
    from prance_jax.training.workdir import Workdir

    mode = options.token_mode or config.token_modes[0]
    if seed not in config.seeds or mode not in config.token_modes:
        raise UserError(f"export: the workdir has seeds {config.seeds} and token modes {config.token_modes}")
    experiment = Experiment(config, Workdir(options.workdir), Progress(quiet=True), train=False)
    method = {"prance": f"prance_{mode}", "meta": "meta_largest", "dense": "dense"}[options.weights]
    if options.weights == "prance":
        params = experiment.prance(seed, mode).params
    else:
        params = experiment.meta(seed) if options.weights == "meta" else experiment.dense(seed)
    facts = _facts(options.workdir, config, seed, method)
    options.target = options.out
    facts = {**facts, "licence": options.licence, "weights": options.weights}
    return cli_weights.save_network(options, params, experiment.spec(mode), facts)


def _facts(workdir: str, config, seed: int, method: str) -> dict:
    """What a card tells of a trained network: what goes in, labels, and what was measured."""
    from prance_jax.data.load import load_source
    from prance_jax.report import results

    source = load_source(config.data)
    facts = {
        "preprocessing": {"pixels": "0 to 1", "mean": source.mean, "std": source.std},
        "labels": list(source.classes),
        "config": config.name,
        "seed": seed,
        "measured": None,
    }
    if (Path(workdir) / "results.json").exists():
        found = results.load(workdir)
        rows = [vars(row) for row in found.rows if (row.method, row.seed) == (method, seed)]
        facts["measured"] = {"hardware": found.hardware, "images": found.images, "rows": rows}
    return facts
