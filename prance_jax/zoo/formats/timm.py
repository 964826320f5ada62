"""DeiT and ViT weights under timm's names, in both directions."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from prance_jax.core.errors import UserError
from prance_jax.spec.model_spec import ModelSpec
from prance_jax.zoo.formats.match import in_layers, paths
from prance_jax.zoo.formats.positions import positions_for

Tree = dict[str, Any]

_WHOLE = {
    "cls_token": "cls_token",
    "dist_token": "dist_token",
    "pos_embed": "pos_embed",
    "patch_embed.proj.weight": "patch_embed/kernel",
    "patch_embed.proj.bias": "patch_embed/bias",
    "norm.weight": "norm/scale",
    "norm.bias": "norm/bias",
    "head.weight": "head/kernel",
    "head.bias": "head/bias",
    "head_dist.weight": "head_dist/kernel",
    "head_dist.bias": "head_dist/bias",
}
_LAYER = {
    "norm1": "norm1",
    "norm2": "norm2",
    "attn.qkv": "qkv",
    "attn.proj": "proj",
    "mlp.fc1": "fc1",
    "mlp.fc2": "fc2",
}


def from_timm(tensors: Mapping[str, np.ndarray], spec: ModelSpec, what: str) -> dict[str, np.ndarray]:
    """Arrays under this package's names; '? name' for one that has no place here."""
    return {
        ours(name) or f"? {name}": _to_ours(name, np.asarray(value, np.float32), spec)
        for name, value in tensors.items()
    }


def to_timm(params: Tree, spec: ModelSpec) -> dict[str, np.ndarray]:
    """The same network under timm's names.

    Raises UserError, all layers at once, where residual maps are not the identity: timm has none.
    """
    names = {own: name for name, own in _WHOLE.items()}
    found, mapped = {}, []
    for path, leaf in paths(params):
        value = np.asarray(leaf)
        if "/residual_map/" in path:
            plain = np.eye(*value.shape) if path.endswith("kernel") else np.zeros(value.shape)
            if (away := float(np.abs(value - plain).max())) > 0:
                mapped.append(f"{path} is no plain residual (up to {away:.2g} away)")
            continue
        name = names.get(path) or _theirs(path)
        found[name] = _to_theirs(name, value, spec)
    if mapped:
        raise UserError(f"a plain ViT cannot hold this network: {'; '.join(in_layers(mapped))}")
    return found


def ours(name: str) -> str | None:
    """This package's name of a tensor, None for one that is not known."""
    if name in _WHOLE:
        return _WHOLE[name]
    match = re.fullmatch(r"blocks\.(\d+)\.(.+)\.(weight|bias)", name)
    if not match or match[2] not in _LAYER:
        return None
    leaf = "bias" if match[3] == "bias" else "scale" if match[2].startswith("norm") else "kernel"
    return f"block_{match[1]}/{_LAYER[match[2]]}/{leaf}"


def _theirs(path: str) -> str:
    block, module, leaf = path.split("/")
    name = next(theirs for theirs, own in _LAYER.items() if own == module)
    return f"blocks.{block.removeprefix('block_')}.{name}.{'bias' if leaf == 'bias' else 'weight'}"


def _to_ours(name: str, value: np.ndarray, spec: ModelSpec) -> np.ndarray:
    if name == "patch_embed.proj.weight" and value.ndim == 4:
        return value.transpose(2, 3, 1, 0).reshape(-1, value.shape[0])
    if name in ("cls_token", "dist_token"):
        return value.reshape(-1)
    if name == "pos_embed" and value.ndim > 1:
        return positions_for(value.reshape(value.shape[-2:]), spec)
    return value.T if value.ndim == 2 else value


def _to_theirs(name: str, value: np.ndarray, spec: ModelSpec) -> np.ndarray:
    if name == "patch_embed.proj.weight":
        side = spec.patch_size
        return value.reshape(side, side, spec.channels, -1).transpose(3, 2, 0, 1)
    if name in ("cls_token", "dist_token", "pos_embed"):
        return value.reshape(1, -1, value.shape[-1])
    return value.T if value.ndim == 2 else value
