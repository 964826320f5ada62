"""The command `benchmark`: speeds on this machine, and measurements on a trained workdir."""

from __future__ import annotations

import argparse
import json

from prance_jax.commands.benchmark_serving import (
    cascade_speed,
    parse_sizes,
    random_weights_speed,
    trained_speed,
)
from prance_jax.commands.common import AddCommand, open_config, open_experiment, open_workdir, renamed_choice
from prance_jax.core.errors import UserError

_DESCRIPTION = """\
Measures one of the following, by --measure.

serving (the default): images per second of the dense network, of masked and adaptive execution, and of
ToMe and EViT, in one run. With --config it uses random weights and evenly spread buckets. With --workdir
it uses trained weights, and adds accuracy and a picture. It writes benchmark.json and benchmark.csv; the
achieved share is the measured speed-up over the one that the MACs promise.

cascade: a cascade of two looks against the dense network, with random weights. The images stop at its
three answers in the --shares. It writes benchmark.json. It needs --config.

dense: the dense network against timm in PyTorch, both installed. rollout: the selector's rollout
against a plain loop; for a cascade decisions per second on a table, alone and with learning. input:
reading images from disk against the decoding library alone. These need --config.

guarantee: how often the certified budget of a workdir exceeds its error limit, in 200 draws of 1,000
calibration images; the selector must serve all budgets. meta: top-1 of stage one's largest structure,
its smallest one and random ones (--config.meta.smallest_keep of the tokens are kept at every decision of
the smallest). These need --workdir.

--suite accelerator measures everything that a GPU or TPU is good for, in order of worth, within --minutes: a self-check,
the dense network, cascades, adaptive execution, the selector, and with --config a training cut to the time that is
left. Every figure is written to --out at once; a second call measures what is missing. --rehearse runs the same code
with a tiny network, on any machine."""


def add_commands(add_command: AddCommand) -> None:
    """Adds `benchmark`."""
    command = add_command(
        "benchmark",
        benchmark,
        "measure speed, the budget guarantee, or stage one",
        _DESCRIPTION,
        "--config configs/imagenet_tiny.py --batches 1,64 --dtypes float32",
        workdir=False,
    )
    command.add_argument(
        "--measure",
        type=renamed_choice("--measure", {"contract": "guarantee"}),
        choices=("serving", "cascade", "dense", "rollout", "guarantee", "input", "meta"),
        default="serving",
        metavar="NAME",
        help="serving, cascade, dense, rollout, guarantee, input or meta; serving by default",
    )
    command.add_argument(
        "--suite",
        choices=("accelerator",),
        help="measure a list of things in place of --measure: accelerator",
    )
    command.add_argument("--minutes", type=float, default=9.0, help="time limit of the suite; 9 by default")
    command.add_argument("--rehearse", action="store_true", help="run the suite with a tiny network")
    command.add_argument("--workdir", help="a trained workdir, for serving, guarantee and meta")
    command.add_argument(
        "--batches",
        default="1,8,64,256",
        help="batch sizes, for serving, cascade and dense; 1,8,64,256 by default",
    )
    command.add_argument(
        "--dtypes",
        default="float32,bfloat16",
        help="types of the computation, for serving and cascade; float32,bfloat16 by default",
    )
    command.add_argument(
        "--shares",
        default="0.3,0.4,0.3",
        help="shares of the images at the three answers, for cascade; 0.3,0.4,0.3 by default",
    )
    command.add_argument(
        "--chunk",
        type=int,
        help="images of a chunk of the executor, for cascade; by default a quarter of the batch, at most 8",
    )
    command.add_argument(
        "--out",
        default="runs/benchmark",
        help="folder for the files of serving and cascade; runs/benchmark by default",
    )
    command.add_argument("--repeats", type=int, default=7, help="measurements of each time; 7 by default")
    command.add_argument(
        "--budget",
        type=float,
        help="share of the dense MACs, for serving with the selector of all budgets; the middle by default",
    )
    command.add_argument(
        "--eps", type=float, default=0.01, help="error limit of guarantee: share of changed predictions; 0.01"
    )
    command.add_argument(
        "--delta", type=float, default=0.1, help="how often guarantee may exceed it, as a share; 0.1"
    )


def benchmark(options: argparse.Namespace) -> int:
    """Runs the measurement that `options.measure` names and prints it."""
    import jax

    from prance_jax.benchmarks.rollout import measure_random_table
    from prance_jax.data.load import load_source, placeholder_source
    from prance_jax.models import forward
    from prance_jax.models.vit import ViT
    from prance_jax.results.table import hardware

    if options.suite is not None:
        return _accelerator_suite(options)
    if options.measure == "guarantee":
        return _guarantee(options)
    if options.measure == "meta":
        return _stage_one(options)
    if options.measure == "serving" and options.workdir is not None:
        return trained_speed(options)
    config = open_config(options)
    if options.measure == "input":
        return _input_speed(options, config)
    needs_images = options.measure == "rollout" and config.cascade is None
    source = load_source(config.data) if needs_images else placeholder_source(config.data)
    spec = config.spec(source, config.token_modes[0])
    if options.measure == "dense":
        return _dense_speed(options, spec)
    if options.measure == "cascade":
        return cascade_speed(options, spec)
    if options.measure == "rollout" and config.cascade is not None:
        figures = measure_random_table(spec, config.cascade.selector, options.repeats)
        return _print(options, {**figures, "hardware": hardware(), "answers": "random"})
    params = forward.init_params(ViT(spec), jax.random.key(1))
    if options.measure == "rollout":
        return _rollout_speed(options, config, source, spec, params)
    return random_weights_speed(options, config, spec, params)


def _accelerator_suite(options: argparse.Namespace) -> int:
    """Runs all parts; status 1 if the self-check failed."""
    from pathlib import Path

    from prance_jax.benchmarks.accelerator.parts import full_suite, rehearsal, suite_parts
    from prance_jax.benchmarks.accelerator.suite import run_suite
    from prance_jax.results.table import hardware

    if not options.minutes > 0:
        raise UserError(f"--minutes {options.minutes:g} must be above 0")
    config = None if options.config is None else open_config(options)
    sizes = (rehearsal if options.rehearse else full_suite)(Path(options.out), config)
    header = {"hardware": hardware(), "command": options.line, "weights": "random"}
    records = run_suite(suite_parts(sizes), 60 * options.minutes, options.out, header)
    print(f"{header['hardware']}\nresults: {options.out}/summary.md and summary.json, a file for each part")
    return int(not all(figures.get("passed", False) for figures in records["check"].values()))


def _input_speed(options: argparse.Namespace, config) -> int:
    from prance_jax.benchmarks.input import measure_input
    from prance_jax.results.table import hardware

    if config.data.name not in ("folder", "tfds"):
        raise UserError(
            "benchmark --measure input is for images on disk (data.name folder or tfds); this config has "
            f"{config.data.name!r}"
        )
    figures = measure_input(config, config.meta.batch, repeats=options.repeats)
    return _print(options, {**figures, "hardware": hardware()})


def _rollout_speed(options: argparse.Namespace, config, source, spec, params) -> int:
    import jax
    import jax.numpy as jnp

    from prance_jax.benchmarks.rollout import measure_rollout
    from prance_jax.results.table import hardware
    from prance_jax.selector.environment import EnvParams
    from prance_jax.training.stages.selector import Selector

    selector = Selector(spec, config.selector, spec.space.first_group(config.model.first_group))
    images, labels = source.sample_plain(source.tables, jax.random.key(0), config.selector.batch)
    logits = jnp.zeros((len(labels), spec.num_classes), "float32")
    env_params = EnvParams(params, images, labels, logits, jnp.float32(0))
    figures = measure_rollout(selector, env_params, jax.random.key(2), options.repeats)
    return _print(options, {**figures, "hardware": hardware(), "weights": "random"})


def _guarantee(options: argparse.Namespace) -> int:
    import numpy as np

    from prance_jax.benchmarks.guarantee import check_guarantee
    from prance_jax.data.load import load_source
    from prance_jax.data.source import Split
    from prance_jax.serving.load import load

    config, workdir = open_workdir(options)
    source = load_source(config.data)
    parts = [source.split(name) for name in ("validation", "test")]
    images, labels = (
        np.concatenate([getattr(part, name)[:] for part in parts]) for name in ("images", "labels")
    )
    figures = check_guarantee(load(workdir.path), Split(images, labels, {}), options.eps, options.delta)
    return _print(options, figures)


def _stage_one(options: argparse.Namespace) -> int:
    from prance_jax.benchmarks.accuracy import meta_accuracies

    experiment = open_experiment(options)
    config = experiment.config
    top1 = {f"seed{seed}": meta_accuracies(experiment, seed) for seed in config.seeds}
    return _print(options, {"top1": top1, "steps": config.meta.steps})


def _dense_speed(options: argparse.Namespace, spec) -> int:
    from prance_jax.benchmarks.dense import measure_dense
    from prance_jax.results.table import hardware

    rows = measure_dense(spec, parse_sizes(options.batches, "--batches"), options.repeats)
    return _print(options, {"rows": rows, "hardware": hardware()})


def _print(options: argparse.Namespace, figures: dict) -> int:
    print(json.dumps({**figures, "command": options.line}, indent=1))
    return 0
