"""The command `export`: a trained workdir as one file, a program or its weights."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from prance_jax.commands.common import AddCommand, open_experiment, open_workdir
from prance_jax.commands.convert import add_names_and_structure, save_network
from prance_jax.core.errors import UserError

_DESCRIPTION = """\
Writes a trained workdir as one file. It needs no --config.

A .prance file is a program (StableHLO) with its weights: any batch size, on CPU, CUDA and TPU.
prance_jax.load_exported reads it, without the code of the model. A .safetensors file holds weights and a
card; --structure extracts one structure from them, --names timm writes timm's names. State the licence
of the weights with --licence."""


def add_commands(add_command: AddCommand) -> None:
    """Adds `export`."""
    command = add_command(
        "export",
        export_run,
        "write a trained workdir as one file, program or weights",
        _DESCRIPTION,
        "--workdir runs/digits --out digits.prance",
    )
    command.add_argument(
        "--out", required=True, help="NAME.prance for a program, NAME.safetensors for weights and a card"
    )
    command.add_argument(
        "--weights",
        choices=("prance", "meta", "dense"),
        default="prance",
        help="for .safetensors: the fine-tuned network, that of stage one, or the dense network",
    )
    command.add_argument("--licence", help="for .safetensors: licence in the card, such as apache-2.0")
    add_names_and_structure(command)
    command.add_argument("--seed", type=int, help="seed of the run; the first by default")
    command.add_argument("--token-mode", help="token mode of the run; the first by default")


def export_run(options: argparse.Namespace) -> int:
    """Writes `options.out`: a program for NAME.prance, weights for NAME.safetensors."""
    from prance_jax.serving.export import export
    from prance_jax.serving.load import load

    config, _ = open_workdir(options)
    seed = config.seeds[0] if options.seed is None else options.seed
    if Path(options.out).suffix not in (".prance", ".safetensors"):
        raise UserError(
            f"export: --out {options.out} is not a known format; give NAME.prance for a program or "
            "NAME.safetensors for weights"
        )
    if Path(options.out).suffix == ".safetensors":
        return _export_weights(options, config, seed)
    if options.structure is not None or options.names != "prance_jax":
        raise UserError("export: --structure and --names are for weights; give --out NAME.safetensors")
    model = load(options.workdir, seed=options.seed, token_mode=options.token_mode)
    method = "prance_cascade" if config.cascade else f"prance_{model.spec.token_optimization}"
    facts = _facts(options.workdir, config, seed, method)
    card = export(model, options.out, facts)
    size = Path(options.out).stat().st_size / 2**20
    print(f"{options.out}: {size:.1f} MB, for {', '.join(card['platforms'])}, any batch size")
    return 0


def _export_weights(options: argparse.Namespace, config, seed: int) -> int:
    mode = options.token_mode or config.token_modes[0]
    if seed not in config.seeds or mode not in config.token_modes:
        raise UserError(f"export: the workdir has seeds {config.seeds} and token modes {config.token_modes}")
    if config.cascade is not None and options.weights != "dense":
        raise UserError(
            "export: a cascade has several networks, no weights file holds them; give --out NAME.prance, or "
            "--weights dense for its dense network"
        )
    experiment = open_experiment(options)
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
    """Facts for the card of a trained network: preprocessing, labels and measured figures."""
    from prance_jax.data.load import load_source
    from prance_jax.experiments.stage_runner import budget_suffix
    from prance_jax.results.rows import stored_results

    source, budgets = load_source(config.data), config.cascade.budgets if config.cascade else ()
    facts = {
        "preprocessing": {"pixels": "0 to 1", "mean": source.mean, "std": source.std},
        "labels": list(source.classes),
        "config": config.name,
        "seed": seed,
        "measured": None,
    }
    if (results := stored_results(workdir)) is not None:
        # A cascade has a row for each budget: prance_cascade_33 and so on.
        names = {method, *(f"{method}{budget_suffix(budget)}" for budget in budgets)}
        rows = [dataclasses.asdict(row) for row in results.rows if row.method in names and row.seed == seed]
        facts["measured"] = {"hardware": results.hardware, "images": results.images, "rows": rows}
    return facts
