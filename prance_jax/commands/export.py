"""The command `export`: a trained workdir as one file, a program or its weights."""

from __future__ import annotations

import argparse
from pathlib import Path

from prance_jax.commands.common import Command
from prance_jax.commands.convert import names_and_structure, save_network
from prance_jax.core.errors import UserError


def arguments(command: Command) -> None:
    """Adds `export`."""
    sub = command("export", export_run, "writes a trained workdir as one file: a program, or its weights")
    sub.add_argument(
        "--out",
        required=True,
        help="model.prance runs by JAX alone; model.safetensors holds weights and a card",
    )
    sub.add_argument(
        "--weights",
        choices=("prance", "meta", "dense"),
        default="prance",
        help="of .safetensors: the fine-tuned network, that of stage one, the dense one",
    )
    sub.add_argument("--licence", help="of .safetensors: for its card, say apache-2.0")
    names_and_structure(sub)
    sub.add_argument("--seed", type=int, help="of the run; the first one by default")
    sub.add_argument("--token-mode", help="of the run; the first one by default")


def export_run(options: argparse.Namespace) -> int:
    """Writes options.out: .safetensors are weights, anything else is a program."""
    from prance_jax.serving.export import export
    from prance_jax.serving.load import load
    from prance_jax.training.workdir import Workdir

    config = Workdir(options.workdir).config()
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
    from prance_jax.experiments.experiment import Experiment
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
    return save_network(options, params, experiment.spec(mode), facts)


def _facts(workdir: str, config, seed: int, method: str) -> dict:
    """What a card tells of a trained network: what goes in, labels, and what was measured."""
    from prance_jax.data.load import load_source
    from prance_jax.results.rows import load_results

    source = load_source(config.data)
    facts = {
        "preprocessing": {"pixels": "0 to 1", "mean": source.mean, "std": source.std},
        "labels": list(source.classes),
        "config": config.name,
        "seed": seed,
        "measured": None,
    }
    if (Path(workdir) / "results.json").exists():
        found = load_results(workdir)
        rows = [vars(row) for row in found.rows if (row.method, row.seed) == (method, seed)]
        facts["measured"] = {"hardware": found.hardware, "images": found.images, "rows": rows}
    return facts
