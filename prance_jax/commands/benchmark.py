"""The command `benchmark`: speeds, and what else is measured on a trained workdir."""

from __future__ import annotations

import argparse
import json

from prance_jax.commands.benchmark_serving import _numbers, _serving_speed, _trained_speed
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
        help="a trained workdir: of serving, to measure it instead of random weights; of contract, one with selector.cost_weights",
    )
    sub.add_argument("--budget", type=float, help="of serving with a workdir of every budget: which one")
    sub.add_argument("--eps", type=float, default=0.01, help="of contract: largest share of disagreements")
    sub.add_argument("--delta", type=float, default=0.1, help="of contract: how often it may be broken")


def benchmark(options: argparse.Namespace) -> int:
    """Runs the measurement that `options.measure` names and prints it."""
    import jax

    from prance_jax.config import io
    from prance_jax.config.experiment import Config
    from prance_jax.data.load import load_source, placeholder_source
    from prance_jax.models import forward
    from prance_jax.models.vit import ViT

    if options.measure == "contract":
        return _guarantee(options)
    if options.measure == "meta":
        return _stage_one(options)
    if options.measure == "serving" and options.workdir is not None:
        return _trained_speed(options)
    if options.config is None:
        raise UserError(
            f"benchmark --measure {options.measure} needs a --config, such as configs/imagenet_tiny.py"
        )
    config = io.load_config(options.config, Config, options.overrides)
    if options.measure == "input":
        return _input_speed(options, config)
    source = load_source(config.data) if options.measure == "rollout" else placeholder_source(config.data)
    spec = config.spec(source, config.token_modes[0])
    if options.measure == "dense":
        return _dense_speed(options, spec)
    params = forward.init_params(ViT(spec), jax.random.key(1))
    if options.measure == "rollout":
        return _rollout_speed(options, config, source, spec, params)
    return _serving_speed(options, config, spec, params)


def _input_speed(options: argparse.Namespace, config) -> int:
    from prance_jax.benchmarks.input import measure_input
    from prance_jax.results.table import hardware

    if config.data.name not in ("folder", "tfds"):
        raise UserError(
            f"benchmark --measure input is for pictures on disk; this config's data is {config.data.name!r}"
        )
    found = measure_input(config, config.meta.batch, repeats=options.repeats)
    print(json.dumps({**found, "hardware": hardware(), "command": options.line}, indent=1))
    return 0


def _rollout_speed(options: argparse.Namespace, config, source, spec, params) -> int:
    import jax
    import jax.numpy as jnp

    from prance_jax.benchmarks.rollout import measure_rollout
    from prance_jax.results.table import hardware
    from prance_jax.selector.environment import EnvParams
    from prance_jax.training.stages.selector import Selector

    selector = Selector(spec, config.selector, spec.space.first_group(config.model.first_group))
    images, labels = source.sample_plain(source.tables, jax.random.key(0), config.selector.batch)
    env_params = EnvParams(params, images, labels, jnp.zeros((len(labels), spec.num_classes)), jnp.float32(0))
    figures = measure_rollout(selector, env_params, jax.random.key(2), options.repeats)
    header = {"hardware": hardware(), "weights": "random", "command": options.line}
    print(json.dumps({**figures, **header}, indent=1))
    return 0


def _guarantee(options: argparse.Namespace) -> int:
    import numpy as np

    from prance_jax.benchmarks.guarantee import check_guarantee
    from prance_jax.data.load import load_source
    from prance_jax.data.source import Split
    from prance_jax.serving.load import load
    from prance_jax.training.workdir import Workdir

    if options.workdir is None:
        raise UserError("benchmark --measure contract needs a --workdir trained with selector.cost_weights")
    source = load_source(Workdir(options.workdir).config().data)
    parts = [source.split(name) for name in ("validation", "test")]
    images, labels = (
        np.concatenate([getattr(part, name)[:] for part in parts]) for name in ("images", "labels")
    )
    found = check_guarantee(load(options.workdir), Split(images, labels, {}), options.eps, options.delta)
    print(json.dumps({**found, "command": options.line}, indent=1))
    return 0


def _stage_one(options: argparse.Namespace) -> int:
    from prance_jax.benchmarks.accuracy import meta_accuracies
    from prance_jax.experiments.experiment import Experiment
    from prance_jax.training.metrics import Progress
    from prance_jax.training.workdir import Workdir

    if options.workdir is None:
        raise UserError("benchmark --measure meta needs a --workdir in which stage one is trained")
    workdir = Workdir(options.workdir)
    config = workdir.config()
    experiment = Experiment(config, workdir, Progress(quiet=True), train=False)
    found = {f"seed{seed}": meta_accuracies(experiment, seed) for seed in config.seeds}
    print(json.dumps({"top1": found, "steps": config.meta.steps, "command": options.line}, indent=1))
    return 0


def _dense_speed(options: argparse.Namespace, spec) -> int:
    from prance_jax.benchmarks.dense import measure_dense
    from prance_jax.results.table import hardware

    rows = measure_dense(spec, _numbers(options.batches, "--batches"), options.repeats)
    print(json.dumps({"rows": rows, "hardware": hardware(), "command": options.line}, indent=1))
    return 0
