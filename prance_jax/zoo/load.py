"""Reads weight files as parameters, whichever library's names they have."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from prance_jax.core.errors import UserError
from prance_jax.models.forward import init_params
from prance_jax.models.vit import ViT
from prance_jax.spec.architecture import Architecture
from prance_jax.spec.model_spec import ModelSpec
from prance_jax.zoo.formats import big_vision, released_prance, timm
from prance_jax.zoo.formats.files import read_card, read_tensors
from prance_jax.zoo.formats.match import fill_tree, named_leaves
from prance_jax.zoo.pretrained import Pretrained, detect_format, open_pretrained

Tree = dict[str, Any]


def load_weights(
    path: str | Path,
    spec: ModelSpec,
    ignore: Sequence[str] = (),
    *,
    ema: bool = False,
    architecture: str | None = None,
    fresh_head: bool = False,
) -> Tree:
    """Reads the parameters of `ViT(spec)` from a .safetensors, .npz or .pth file.

    Position embeddings of another image size are resized as the library of the file resizes its own.
    Residual maps, which public files lack, become the identity; LayerScale is folded into the weights.

    Args:
      path: of the file, or an address, see `open_pretrained`.
      spec: of the network.
      ignore: patterns (* and ?) of tensors in the file to leave out.
      ema: read the averaged weights of a training script's checkpoint.
      architecture: timm's name of the network, if the caller knows it.
      fresh_head: where the file has no classifier, or one for another number of classes, draw a random one;
        a warning tells it.

    Returns:
      Parameters, float32.

    Raises:
      UserError: the file cannot be read, its network computes something else, or its tensors do not fit;
        the message lists all mismatches.
    """
    opened = open_pretrained(path, ema=ema, ignore=ignore, architecture=architecture)
    return fill_network(opened, spec, fresh_head)


def fill_network(opened: Pretrained, spec: ModelSpec, fresh_head: bool = False) -> Tree:
    """Arranges opened weights as the parameters of `ViT(spec)`.

    Args:
      opened: weights.
      spec: of the network.
      fresh_head: see `load_weights`.

    Raises:
      UserError: see `load_weights`.
    """
    origin, file_format = opened.origin, opened.file_format
    if opened.config is not None:
        _check_semantics(opened, spec)
    interpolation = (opened.config and opened.config.resize) or "timm"
    arrays = to_our_names(opened.tensors, spec, origin, interpolation)
    template = jax.eval_shape(lambda: init_params(ViT(spec), jax.random.key(0)))
    if file_format in ("timm", "big_vision"):
        for name, leaf in named_leaves(template):
            if "/residual_map/" in name and name not in arrays:
                identity = np.eye if name.endswith("kernel") else np.zeros
                arrays[name] = identity(*leaf.shape, dtype=np.float32)
    if fresh_head:
        _draw_heads(arrays, template, origin)
    try:
        return fill_tree(arrays, template, origin)
    except UserError as error:
        raise UserError(f"{error}{_hint(arrays, spec, file_format)}") from None


def to_our_names(
    tensors: Mapping[str, np.ndarray], spec: ModelSpec, origin: str, interpolation: str = "timm"
) -> dict[str, np.ndarray]:
    """Converts tensors of any known format to this package's names and layouts.

    Args:
      tensors: name -> array; of public families as `open_pretrained` gives them.
      spec: of the network.
      origin: path of the file, for messages.
      interpolation: rule by which positions under timm's names are resized, see `positions.RULES`.

    Returns:
      As `from_timm`, `from_big_vision` and `from_released_prance` do.

    Raises:
      UserError: the names belong to no known format.
    """
    match detect_format(tensors):
        case "timm":
            return timm.from_timm(tensors, spec, interpolation)
        case "big_vision":
            return big_vision.from_big_vision(tensors, spec, origin)
        case "official":
            return released_prance.from_released_prance(tensors, spec)
        case "prance_jax":
            return {name: np.asarray(value, np.float32) for name, value in tensors.items()}
    examples = ", ".join(list(tensors)[:5])
    raise UserError(
        f"{origin} holds no ViT that is known ({len(tensors)} tensors: {examples} ...); wanted names of this "
        "package, timm, Hugging Face, OpenCLIP, big_vision, or the released PRANCE files"
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
    semantics = {name: network[name] for name in fields if name in network}
    if "architecture" in network:
        semantics["architecture"] = Architecture(**network["architecture"])
    return semantics


def _check_semantics(opened: Pretrained, spec: ModelSpec) -> None:
    """Compares what shapes do not show: heads, the epsilon of norms, activation, pooling and so on."""
    config, problems = opened.config, []
    parts = zip(dataclasses.asdict(config.parts).items(), dataclasses.astuple(spec.architecture), strict=True)
    problems += [
        f"{name}={value!r}, the model {other!r}"
        for (name, value), other in parts
        if value != other and name != "no_embed_class"
    ]
    if config.heads not in (None, spec.space.heads):
        problems.append(f"{config.heads} heads, the model {spec.space.heads}")
    # 1e-12 in configs of Hugging Face is of networks that were trained with 1e-6.
    if config.norm_eps is not None and max(config.norm_eps, 1e-6) != max(spec.norm_epsilon, 1e-6):
        problems.append(f"norm_epsilon={config.norm_eps:g}, the model {spec.norm_epsilon:g}")
    if problems:
        raise UserError(f"{opened.origin} has {'; '.join(problems)}")


def _draw_heads(arrays: dict[str, np.ndarray], template: Tree, origin: str) -> None:
    """Random classifiers where the file has none, or one for another number of classes."""
    has_head = any(name.startswith("head") for name in arrays)
    for index, head in enumerate(name for name in ("head", "head_dist") if name in template):
        shape = template[head]["kernel"].shape
        kernel, bias = (arrays.get(f"{head}/{leaf}") for leaf in ("kernel", "bias"))
        is_other = kernel is not None and bias is not None and len(bias) != shape[1]
        if has_head and not is_other:
            continue
        draw = jax.nn.initializers.xavier_uniform()
        arrays[f"{head}/kernel"] = np.asarray(draw(jax.random.key(index), shape))
        arrays[f"{head}/bias"] = np.zeros(shape[1], np.float32)
        reason = f"has {len(bias)} classes" if is_other else "has no classifier"
        warnings.warn(f"{origin} {reason}: {head} is a random one for {shape[1]} outputs", stacklevel=2)


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
