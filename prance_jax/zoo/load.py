"""Reads weight files as parameters, whichever library's names they have."""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from prance_jax.core.errors import UserError
from prance_jax.models.forward import init_params
from prance_jax.models.vit import ViT
from prance_jax.spec.model_spec import ModelSpec
from prance_jax.zoo.formats import big_vision, released_prance, timm
from prance_jax.zoo.formats.files import read_card, read_tensors
from prance_jax.zoo.formats.match import fill_tree, named_leaves

Tree = dict[str, Any]


def load_weights(path: str | Path, spec: ModelSpec, ignore: Sequence[str] = ()) -> Tree:
    """Reads the parameters of `ViT(spec)` from a .safetensors, .npz or .pth file.

    Position embeddings of another image size are resized as timm or big_vision resize theirs.
    Residual maps, which their files lack, become the identity.

    Args:
      path: of the file.
      spec: of the network.
      ignore: patterns (* and ?) of tensors in the file to leave out.

    Returns:
      Parameters, float32.

    Raises:
      UserError: the file cannot be read, or its tensors do not fit; the message lists all
        mismatches.
    """
    tensors, origin = drop_ignored(read_tensors(path), ignore, path), str(path)
    template = jax.eval_shape(lambda: init_params(ViT(spec), jax.random.key(0)))
    arrays, file_format = to_our_names(tensors, spec, origin), detect_format(tensors)
    if file_format in ("timm", "big_vision"):
        for name, leaf in named_leaves(template):
            if "/residual_map/" in name and name not in arrays:
                identity = np.eye if name.endswith("kernel") else np.zeros
                arrays[name] = identity(*leaf.shape, dtype=np.float32)
    try:
        return fill_tree(arrays, template, origin)
    except UserError as error:
        raise UserError(f"{error}{_hint(arrays, spec, file_format)}") from None


def drop_ignored(
    tensors: Mapping[str, np.ndarray], ignore: Sequence[str], origin: Any
) -> dict[str, np.ndarray]:
    """Removes the tensors that a pattern matches.

    Args:
      tensors: name -> array.
      ignore: patterns of names, with * and ?.
      origin: path of the file, for error messages.

    Raises:
      UserError: a pattern matches no tensor, so it is probably mistyped.
    """
    unmatched = [pattern for pattern in ignore if not fnmatch.filter(tensors, pattern)]
    if unmatched:
        raise UserError(f"{origin} has no tensor {', '.join(unmatched)} that could be ignored")
    ignored = {name for pattern in ignore for name in fnmatch.filter(tensors, pattern)}
    return {name: value for name, value in tensors.items() if name not in ignored}


def detect_format(tensors: Mapping[str, np.ndarray]) -> str:
    """Detects whose names tensors have.

    Returns:
      'prance_jax', 'big_vision', 'official' (released PRANCE) or 'timm'; '' for other names.
    """
    names = list(tensors)
    if big_vision.is_big_vision(names):
        return "big_vision"
    if any(name.startswith("block_0/") for name in names):
        return "prance_jax"
    if released_prance.is_released_prance(names):
        return "official"
    return "timm" if any(timm.our_name(name) for name in names) else ""


def to_our_names(tensors: Mapping[str, np.ndarray], spec: ModelSpec, origin: str) -> dict[str, np.ndarray]:
    """Converts tensors of any known format to this package's names and layouts.

    Args:
      tensors: name -> array.
      spec: of the network.
      origin: path of the file, for messages.

    Returns:
      As `from_timm`, `from_big_vision` and `from_released_prance` do.

    Raises:
      UserError: the names belong to no known format.
    """
    match detect_format(tensors):
        case "timm":
            return timm.from_timm(tensors, spec)
        case "big_vision":
            return big_vision.from_big_vision(tensors, spec, origin)
        case "official":
            return released_prance.from_released_prance(tensors, spec)
        case "prance_jax":
            return {name: np.asarray(value, np.float32) for name, value in tensors.items()}
    examples = ", ".join(list(tensors)[:5])
    raise UserError(
        f"{origin} holds no ViT that is known ({len(tensors)} tensors: {examples} ...); wanted names of this "
        "package, timm, big_vision, or the released PRANCE files"
    )


def flatten_params(params: Tree) -> dict[str, np.ndarray]:
    """Returns parameters by path, for example 'block_0/qkv/kernel'."""
    return {name: np.asarray(leaf) for name, leaf in named_leaves(params)}


def make_card(spec: ModelSpec, names: str) -> dict[str, Any]:
    """Builds the card of a weight file, which describes it to readers without this package.

    The card holds the network, its search space, the preprocessing, labels, measured figures and
    the licence. Facts that the weights do not determine are null, for the caller to fill in.

    Args:
      spec: of the network.
      names: of the tensors, 'prance_jax' or 'timm'.

    Returns:
      JSON-able facts.
    """
    space, fields = spec.space, dataclasses.asdict(spec)
    card = {
        "format": "prance_jax weights",
        "names": names,
        "network": {name: value for name, value in fields.items() if name != "space"},
        "search_space": fields["space"],
        "preprocessing": {"size": [spec.image_size, spec.image_size], "mean": None, "std": None},
        "labels": None,
        "measured": None,
        "licence": None,
    }
    if names == "timm":
        card["timm"] = {
            "class": "VisionTransformerDistilled" if spec.distilled else "VisionTransformer",
            "patch_size": spec.patch_size,
            "num_classes": spec.num_classes,
            "img_size": spec.image_size,
            "in_chans": spec.channels,
            "embed_dim": space.max_width,
            "depth": space.depth,
            "num_heads": space.heads,
            "mlp_ratio": space.ratios[-1],
            # If heads x head width differs from the width, `attn_layer` must be a subclass of timm's
            # Attention that passes this value to it.
            "attn_head_dim": None if space.attention_width == space.max_width else space.head_dim,
        }
    return card


def read_semantics(path: str | Path) -> dict[str, Any]:
    """Reads the fields of `ModelSpec` that a network needs and the shapes of its weights do not show.

    They come from the card of the file. A released PRANCE file needs those of `ModelSpec.official`.
    """
    fields = (
        "norm_epsilon",
        "enter_at_widest",
        "scale_norm",
        "token_floor",
        "distilled",
        "residual_maps",
        "pixels",
        "multi_label",
        "full_last_layer",
    )
    network = read_card(path).get("network", {})
    if not network and detect_format(read_tensors(path)) == "official":
        return {
            "enter_at_widest": True,
            "scale_norm": True,
            "token_floor": 1,
            "norm_epsilon": 1e-5,
            "full_last_layer": True,
        }
    return {name: network[name] for name in fields if name in network}


def _hint(arrays: Mapping[str, np.ndarray], spec: ModelSpec, file_format: str) -> str:
    """The fields of the specification that would make the file fit, as part of an error message."""
    hints, bias = [], arrays.get("head/bias")
    if bias is not None and len(bias) != spec.outputs:
        num_classes = len(bias) * spec.num_classes // spec.outputs
        hints.append(f"it has {num_classes} classes, the model {spec.num_classes}: num_classes={num_classes}")
    distilled = "dist_token" in arrays
    if distilled != spec.distilled:
        hints.append(
            f"it has {'two class tokens' if distilled else 'one class token'}: distilled={distilled}"
        )
    if file_format in ("timm", "big_vision") and spec.space.num_structures > 1:
        hints.append("to start a meta-network from a dense network set meta.init_from, see zoo.from_dense")
    return "".join(f"; {hint}" for hint in hints)
