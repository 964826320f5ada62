"""The command `convert`: weights in and out under the names that others use."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

from prance_jax.commands.common import Command
from prance_jax.core.errors import UserError

_OF_ONE_FILE = ("format", "names", "network", "search_space", "timm")


def arguments(command: Command) -> None:
    """Adds `convert`."""
    sub = command(
        "convert",
        convert,
        "weights between this package, timm, big_vision and the released PRANCE files",
        config=False,
        workdir=False,
    )
    sub.add_argument("source", help=".safetensors, .npz or .pth; whose names it has is found out")
    sub.add_argument("target", help="the .safetensors file to write")
    which = sub.add_mutually_exclusive_group(required=True)
    which.add_argument("--model", help="a name of list_models(), say deit_tiny_patch16_224")
    which.add_argument("--config", help="a config file: the network that it describes")
    sub.add_argument("--num-classes", type=int, help="where they differ from the model's")
    sub.add_argument("--image-size", type=int, help="where it differs; positions are resized")
    sub.add_argument("--token-mode", help="prune, merge or prune_merge: the actions of a released selector")
    sub.add_argument(
        "--ignore",
        action="append",
        default=[],
        metavar="PATTERN",
        help="tensors not to use, say 'head_dist.*'",
    )
    sub.add_argument("--card", help="a JSON file of facts for the card: licence, labels, preprocessing ...")
    names_and_structure(sub)


def names_and_structure(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--names", choices=("prance_jax", "timm"), default="prance_jax", help="names in the target"
    )
    sub.add_argument(
        "--structure",
        metavar="WIDTHxRATIO|smallest|largest",
        help="cuts this structure out as a plain ViT with weights of its own",
    )


def convert(options: argparse.Namespace) -> int:
    """Reads weights under any names that are known and writes them with a card."""
    from prance_jax.zoo import released_selector as selectors
    from prance_jax.zoo.formats.files import read_card, read_tensors
    from prance_jax.zoo.load import drop_ignored, load_weights, semantics

    tensors = read_tensors(options.source)
    spec = dataclasses.replace(_spec(options), **semantics(options.source))
    origin = {"source": Path(options.source).name, "model": options.model or options.config}
    facts = {**read_card(options.source), **origin, **_facts(options.card)}
    if part := selectors.detect_kind(tensors):
        used = drop_ignored(tensors, options.ignore, options.source)
        params = selectors.selector_weights(used, spec)
        return _write(options, {part: params}, spec, {**facts, "part": part})
    params = load_weights(options.source, spec, options.ignore)
    return save_network(options, params, spec, facts)


def save_network(options: argparse.Namespace, params: Any, spec: Any, facts: dict[str, Any]) -> int:
    """Writes a network, or what --structure cuts out of it."""
    from prance_jax.zoo.extract import extract_structure

    if options.structure is not None:
        space = spec.space
        named = {"smallest": "min", "largest": "max"}.get(options.structure, options.structure)
        (width,), (mlp_dim,) = (set(own[:1]) for own in space.first_group(named)[:2])
        structure = space.uniform(width, space.ratio(width, mlp_dim), (1.0,) * spec.rates)
        params, spec = extract_structure(params, spec, structure)
        facts = {
            **facts,
            "structure": options.structure,
            "measured": None,
        }  # figures are of the whole network
    return _write(options, params, spec, facts)


def _write(options: argparse.Namespace, params: Any, spec: Any, facts: dict[str, Any]) -> int:
    from prance_jax.zoo.formats.files import save_weights
    from prance_jax.zoo.formats.timm import to_timm
    from prance_jax.zoo.load import flatten_params, make_card

    if options.names == "timm" and "part" in facts:
        raise UserError("timm has no names for a selector; leave --names out")
    tensors = to_timm(params, spec) if options.names == "timm" else flatten_params(params)
    own = make_card(spec, options.names)
    goes_in, size = own["preprocessing"], own["preprocessing"]["size"]
    goes_in = {**goes_in, **(facts.get("preprocessing") or {}), "size": size}
    # A card that was carried on from the source told these of the source.
    carried = {name: value for name, value in facts.items() if name not in _OF_ONE_FILE}
    save_weights(options.target, tensors, {**own, **carried, "preprocessing": goes_in})
    numbers = sum(value.size for value in tensors.values())
    print(f"{options.target}: {len(tensors)} tensors, {numbers:,} numbers, names of {options.names}")
    return 0


def _spec(options: argparse.Namespace):
    """The network that --model or --config names, with the changes that are asked for."""
    from prance_jax.config import io
    from prance_jax.config.experiment import Config
    from prance_jax.data.load import placeholder_source
    from prance_jax.zoo.registry import create_model

    given = {
        "num_classes": options.num_classes,
        "image_size": options.image_size,
        "token_optimization": options.token_mode,
    }
    given = {name: value for name, value in given.items() if value is not None}
    if options.model is not None:
        return create_model(options.model, **given).spec
    config = io.load_config(options.config, Config, options.overrides)
    return dataclasses.replace(config.spec(placeholder_source(config.data), config.token_modes[0]), **given)


def _facts(path: str | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        found = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"--card {path} is no JSON that can be read ({error})") from None
    if not isinstance(found, dict):
        raise UserError(f'--card {path} should be a JSON object, say {{"licence": "apache-2.0"}}')
    return found
