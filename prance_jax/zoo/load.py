"""Weight files as parameters: this package's names, timm's, big_vision's and the released PRANCE ones, told apart by what
they hold."""

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
from prance_jax.zoo.formats.match import fill_tree, paths

Tree = dict[str, Any]


def load_weights(path: str | Path, spec: ModelSpec, ignore: Sequence[str] = ()) -> Tree:
    """Parameters of `ViT(spec)` from a .safetensors, .npz or .pth file, float32.

    Position embeddings of another image size are resized as timm does; residual maps, which dense networks have not, are the
    identity. ignore: patterns (* and ?) of tensors in the file that are not to be used.
    Raises UserError for a file that cannot be read, and one that lists everything that does not fit.
    """
    tensors, what = drop_ignored(read_tensors(path), ignore, path), str(path)
    wanted = jax.eval_shape(lambda: init_params(ViT(spec), jax.random.key(0)))
    found = to_our_names(tensors, spec, what)
    for place, leaf in paths(wanted):
        if (
            "/residual_map/" in place
            and place not in found
            and detect_format(tensors) in ("timm", "big_vision")
        ):
            whole = np.eye if place.endswith("kernel") else np.zeros
            found[place] = whole(*leaf.shape, dtype=np.float32)
    try:
        return fill_tree(found, wanted, what)
    except UserError as error:
        raise UserError(f"{error}{_hint(found, spec, detect_format(tensors))}") from None


def drop_ignored(
    tensors: Mapping[str, np.ndarray], ignore: Sequence[str], what: Any
) -> dict[str, np.ndarray]:
    """The tensors that no pattern names. Raises UserError for patterns that name none: they are mistyped."""
    idle = [pattern for pattern in ignore if not fnmatch.filter(tensors, pattern)]
    if idle:
        raise UserError(f"{what} has no tensor {', '.join(idle)} that could be ignored")
    gone = {name for pattern in ignore for name in fnmatch.filter(tensors, pattern)}
    return {name: value for name, value in tensors.items() if name not in gone}


def detect_format(tensors: Mapping[str, np.ndarray]) -> str:
    """Whose names they are: 'prance_jax', 'big_vision', 'official' or 'timm' ('' for none of them)."""
    names = list(tensors)
    if big_vision.recognises(names):
        return "big_vision"
    if any(name.startswith("block_0/") for name in names):
        return "prance_jax"
    if released_prance.recognises(names):
        return "official"
    return "timm" if any(timm.ours(name) for name in names) else ""


def to_our_names(tensors: Mapping[str, np.ndarray], spec: ModelSpec, what: str) -> dict[str, np.ndarray]:
    """Arrays under this package's names, whosever they had; '? name' for one that has no place here."""
    ways = {
        "timm": timm.from_timm,
        "big_vision": big_vision.from_big_vision,
        "official": released_prance.from_released_prance,
    }
    ways["prance_jax"] = lambda own, *_: {name: np.asarray(value, np.float32) for name, value in own.items()}
    kind = detect_format(tensors)
    if not kind:
        some = ", ".join(list(tensors)[:5])
        raise UserError(
            f"{what} holds no ViT that is known ({len(tensors)} tensors: {some} ...); wanted names of this package, "
            "timm, big_vision, or the released PRANCE files"
        )
    return ways[kind](tensors, spec, what)


def flatten_params(params: Tree) -> dict[str, np.ndarray]:
    """Parameters under this package's names, 'block_0/qkv/kernel'."""
    return {name: np.asarray(leaf) for name, leaf in paths(params)}


def make_card(spec: ModelSpec, names: str) -> dict[str, Any]:
    """What a reader without this package must know of a weight file: the network, its search space and what goes in.

    names: 'prance_jax' or 'timm'. Facts that weights do not tell are there and null; whoever writes the file fills them in.
    """
    space, found = spec.space, dataclasses.asdict(spec)
    own = {
        "format": "prance_jax weights",
        "names": names,
        "network": {name: value for name, value in found.items() if name != "space"},
        "search_space": found["space"],
        "preprocessing": {"size": [spec.image_size, spec.image_size], "mean": None, "std": None},
        "labels": None,
        "measured": None,
        "licence": None,
    }
    if names == "timm":
        whole = {"img_size": spec.image_size, "in_chans": spec.channels, "embed_dim": space.max_width}
        own["timm"] = {
            "class": "VisionTransformerDistilled" if spec.distilled else "VisionTransformer",
            **{name: getattr(spec, name) for name in ("patch_size", "num_classes")},
            **whole,
            **{"depth": space.depth, "num_heads": space.heads, "mlp_ratio": space.ratios[-1]},
            # Where heads x head width is not the width, `attn_layer` is a subclass of timm's Attention that passes it this.
            "attn_head_dim": None if space.attention_width == space.max_width else space.head_dim,
        }
    return own


def semantics(path: str | Path) -> dict[str, Any]:
    """Fields of `ModelSpec` that weights were made for and that no shape tells: from the card of a file, or by its names."""
    fields = (
        "norm_epsilon",
        "enter_at_widest",
        "scale_norm",
        "token_floor",
        "distilled",
        "residual_maps",
        "pixels",
    )
    found = read_card(path).get("network", {})
    if not found and detect_format(read_tensors(path)) == "official":
        return {"enter_at_widest": True, "scale_norm": True, "token_floor": 1, "norm_epsilon": 1e-5}
    return {name: found[name] for name in fields if name in found}


def _hint(found: Mapping[str, np.ndarray], spec: ModelSpec, whose: str) -> str:
    """What to say instead, where a field of the specification makes the difference."""
    hints, classes = [], found.get("head/bias")
    if classes is not None and len(classes) != spec.outputs:
        own = len(classes) * spec.num_classes // spec.outputs
        hints.append(f"it has {own} classes, the model {spec.num_classes}: num_classes={own}")
    if ("dist_token" in found) != spec.distilled:
        own = "dist_token" in found
        hints.append(f"it has {'two class tokens' if own else 'one class token'}: distilled={own}")
    if whose in ("timm", "big_vision") and spec.space.structures > 1:
        hints.append("a meta-network starts from a dense one by meta.init_from, see models.from_dense")
    return "".join(f"; {hint}" for hint in hints)
