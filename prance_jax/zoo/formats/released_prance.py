"""Reads the released PRANCE files: official parameter names into this package's meta-network and selector.

Official layout (ChildTang/PRANCE): PyTorch linear weights [out, in]; the rows of q, k and v are interleaved (row r
belongs to q, k or v by r mod 3) while their biases are contiguous. Attention weights are stored for q, k and v as wide
as the super width; the leading heads x head width of them are used.
"""

from __future__ import annotations

import re
from typing import Any, Mapping

import numpy as np

from prance_jax.spec.model_spec import ModelSpec
from prance_jax.zoo.formats.match import fill_tree

Tree = dict[str, Any]

_LAYER_NAMES = {
    "attn_layer_norm": "norm1",
    "ffn_layer_norm": "norm2",
    "attn.proj": "proj",
    "fc1": "fc1",
    "fc2": "fc2",
    "lln": "residual_map",
}


def meta_network(tensors: Mapping[str, np.ndarray], spec: ModelSpec, wanted: Tree) -> Tree:
    """Parameters of `ViT(spec)` from official tensors (names without a prefix, e.g. 'blocks.0.fc1.weight').

    wanted: parameters (or shapes) of the model to fill. Raises UserError that lists every tensor that is missing,
    left over or of another shape.
    """
    return fill_tree(from_released_prance(tensors, spec), wanted, "official PRANCE meta-network")


def recognises(names: list[str]) -> bool:
    return any("patch_embed_super" in name for name in names)


def from_released_prance(
    tensors: Mapping[str, np.ndarray], spec: ModelSpec, what: str = ""
) -> dict[str, np.ndarray]:
    """Arrays under this package's names; '? name' for one that has no place here."""
    return {
        _target(name) or f"? {name}": _convert(name, np.asarray(value, np.float32), spec)
        for name, value in tensors.items()
    }


def selector_params(tensors: Mapping[str, np.ndarray], wanted: Tree, what: str) -> Tree:
    """Parameters of an actor or critic from official tensors ('fc1.weight', ...); errors as in `meta_network`."""
    found = {}
    for name, value in tensors.items():
        layer, kind = name.rsplit(".", 1)
        value = np.asarray(value, np.float32)
        found[f"{layer}/{'kernel' if kind == 'weight' else 'bias'}"] = value.T if kind == "weight" else value
    return fill_tree(found, wanted, f"official PRANCE {what}")


def _target(name: str) -> str | None:
    simple = {
        "pos_embed": "pos_embed",
        "cls_token": "cls_token",
        "patch_embed_super.proj.weight": "patch_embed/kernel",
        "patch_embed_super.proj.bias": "patch_embed/bias",
        "norm.weight": "norm/scale",
        "norm.bias": "norm/bias",
        "head.weight": "head/kernel",
        "head.bias": "head/bias",
    }
    if name in simple:
        return simple[name]
    match = re.fullmatch(r"blocks\.(\d+)\.(.+)\.(weight|bias)", name)
    if not match:
        return None
    layer, module, kind = match.groups()
    ours = "qkv" if module == "attn.qkv" else _LAYER_NAMES.get(module)
    if ours is None:
        return None
    leaf = "bias" if kind == "bias" else "scale" if module.endswith("layer_norm") else "kernel"
    return f"block_{layer}/{ours}/{leaf}"


def _convert(name: str, value: np.ndarray, spec: ModelSpec) -> np.ndarray:
    if name == "patch_embed_super.proj.weight" and value.ndim == 4:
        return value.transpose(2, 3, 1, 0).reshape(-1, value.shape[0])
    inner = spec.space.attention_width
    if name.endswith("attn.qkv.weight"):
        return np.concatenate([value[part : 3 * inner : 3] for part in range(3)]).T
    if name.endswith("attn.qkv.bias"):
        return value[: 3 * inner]
    if name.endswith("attn.proj.weight"):
        return value[:, :inner].T
    if name in ("pos_embed", "cls_token"):
        return value[0, 0] if name == "cls_token" and value.ndim == 3 else value.reshape(value.shape[-2:])
    return value.T if value.ndim == 2 else value
