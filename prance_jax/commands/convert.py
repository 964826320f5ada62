"""The command `convert`: reads and writes weights under the names that other packages use."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

from prance_jax.commands.common import AddCommand, open_config
from prance_jax.core.errors import UserError

_OF_ONE_FILE = ("format", "names", "network", "search_space", "timm")
_DESCRIPTION = """\
Converts weights between this package, timm, big_vision and the released PRANCE files. Whose names the
source has is detected. Every tensor must be used or named by --ignore; otherwise one error lists all
mismatches.

The target has a card with facts about the network, readable without this package; --card adds to it. A
converted file keeps the licence that it came with: state it with --card."""


def add_commands(add_command: AddCommand) -> None:
    """Adds `convert`."""
    command = add_command(
        "convert",
        convert,
        "convert weights from and to timm, big_vision, PRANCE",
        _DESCRIPTION,
        "deit.pth deit.safetensors --model deit_tiny_patch16_224 --ignore 'head_dist.*'",
        config=False,
        workdir=False,
    )
    command.add_argument("source", help="the .safetensors, .npz or .pth file to read, or hf-hub:OWNER/NAME")
    command.add_argument("target", help="the .safetensors file to write")
    network = command.add_mutually_exclusive_group(required=True)
    network.add_argument("--model", help="a name of list_models(), such as deit_tiny_patch16_224")
    network.add_argument(
        "--config", help="a config file: the network that it describes; --config.a.b=value sets a value of it"
    )
    command.add_argument("--num-classes", type=int, help="number of classes, if not the model's")
    command.add_argument(
        "--image-size", type=int, help="image size, if not the model's; position embeddings are resized"
    )
    command.add_argument(
        "--token-mode", help="prune, merge or prune_merge: the actions of a released selector"
    )
    command.add_argument(
        "--ignore",
        action="append",
        default=[],
        metavar="PATTERN",
        help="tensors not to use, such as 'head_dist.*'; may be repeated",
    )
    command.add_argument(
        "--ema", action="store_true", help="read the averaged weights of a training checkpoint"
    )
    command.add_argument("--card", help="a JSON file of facts for the card: licence, labels, preprocessing")
    add_names_and_structure(command)


def add_names_and_structure(command: argparse.ArgumentParser) -> None:
    """Adds --names and --structure, for `save_network`."""
    command.add_argument(
        "--names",
        choices=("prance_jax", "timm"),
        default="prance_jax",
        help="names of the tensors in the target",
    )
    command.add_argument(
        "--structure",
        metavar="WIDTHxRATIO|smallest|largest",
        help="extract this structure as a plain ViT with weights of its own; the network must have no "
        "trained residual maps",
    )


def convert(options: argparse.Namespace) -> int:
    """Reads weights under any known names and writes them with a card."""
    from prance_jax.zoo import released_selector as selectors
    from prance_jax.zoo.formats.files import read_card, read_tensors
    from prance_jax.zoo.hub import find_files
    from prance_jax.zoo.load import load_weights, read_semantics
    from prance_jax.zoo.pretrained import drop_ignored

    file = find_files(options.source).weights
    tensors = read_tensors(file, options.ema)
    spec = dataclasses.replace(_spec(options), **read_semantics(file))
    origin = {"source": Path(options.source).name, "model": options.model or options.config}
    facts = {**read_card(file), **origin, **_facts(options.card)}
    if part := selectors.detect_kind(tensors):
        used = drop_ignored(tensors, options.ignore, options.source)
        params = selectors.load_selector_params(used, spec)
        return _write(options, {part: params}, spec, {**facts, "part": part})
    classes = options.num_classes is not None
    params = load_weights(
        options.source, spec, options.ignore, ema=options.ema, architecture=options.model, fresh_head=classes
    )
    return save_network(options, params, spec, facts)


def save_network(options: argparse.Namespace, params: Any, spec: Any, facts: dict[str, Any]) -> int:
    """Writes a network, or the structure that --structure names.

    Args:
      options: `target`, `names` and `structure` are used.
      params: parameters of the network.
      spec: its `ModelSpec`.
      facts: facts for the card.

    Returns:
      Exit status 0.
    """
    from prance_jax.zoo.extract import extract_structure

    if options.structure is not None:
        space = spec.space
        named = {"smallest": "min", "largest": "max"}.get(options.structure, options.structure)
        (width,), (mlp_dim,) = (set(sizes[:1]) for sizes in space.first_group(named)[:2])
        structure = space.uniform(width, space.ratio(width, mlp_dim), (1.0,) * spec.rates)
        params, spec = extract_structure(params, spec, structure)
        # The measured figures are those of the whole network.
        facts = {**facts, "structure": options.structure, "measured": None}
    return _write(options, params, spec, facts)


def _write(options: argparse.Namespace, params: Any, spec: Any, facts: dict[str, Any]) -> int:
    from prance_jax.zoo.formats.files import save_weights
    from prance_jax.zoo.formats.timm import to_timm
    from prance_jax.zoo.load import flatten_params, make_card

    if options.names == "timm" and "part" in facts:
        raise UserError("timm has no names for a selector; leave --names out")
    tensors = to_timm(params, spec) if options.names == "timm" else flatten_params(params)
    card = make_card(spec, options.names)
    size = card["preprocessing"]["size"]
    preprocessing = {**card["preprocessing"], **(facts.get("preprocessing") or {}), "size": size}
    # In the card of the source these describe the source.
    carried = {name: value for name, value in facts.items() if name not in _OF_ONE_FILE}
    save_weights(options.target, tensors, {**card, **carried, "preprocessing": preprocessing})
    numbers = sum(value.size for value in tensors.values())
    print(f"{options.target}: {len(tensors)} tensors, {numbers:,} numbers, names of {options.names}")
    return 0


def _spec(options: argparse.Namespace):
    """The network that --model or --config names, with the changes of other options."""
    from prance_jax.data.load import placeholder_source
    from prance_jax.zoo.registry import create_model

    changes = {
        "num_classes": options.num_classes,
        "image_size": options.image_size,
        "token_optimization": options.token_mode,
    }
    changes = {name: value for name, value in changes.items() if value is not None}
    if options.model is not None:
        return create_model(options.model, **changes).spec
    config = open_config(options)
    return dataclasses.replace(config.spec(placeholder_source(config.data), config.token_modes[0]), **changes)


def _facts(path: str | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        facts = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"--card {path} is not a readable JSON file ({error})") from None
    if not isinstance(facts, dict):
        raise UserError(f'--card {path} should be a JSON object, such as {{"licence": "apache-2.0"}}')
    return facts
