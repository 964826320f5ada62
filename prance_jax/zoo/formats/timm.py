"""Converts DeiT and ViT weights from timm's names and back.

DeiT, ViT and what `spec.architecture.Architecture` describes; LayerScale is folded before.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from prance_jax.core.errors import UserError
from prance_jax.spec.model_spec import ModelSpec
from prance_jax.zoo.formats.match import merge_layers, named_leaves
from prance_jax.zoo.formats.positions import positions_for

Tree = dict[str, Any]

_WHOLE = {
    "cls_token": "cls_token",
    "dist_token": "dist_token",
    "reg_token": "reg_token",
    "pos_embed": "pos_embed",
    "patch_embed.proj.weight": "patch_embed/kernel",
    "patch_embed.proj.bias": "patch_embed/bias",
    "norm_pre.weight": "norm_pre/scale",
    "norm_pre.bias": "norm_pre/bias",
    "fc_norm.weight": "norm/scale",
    "fc_norm.bias": "norm/bias",
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
    "mlp.fc1_g": "fc1_g",
    "mlp.fc1_x": "fc1",
    "mlp.fc1": "fc1",
    "mlp.fc2": "fc2",
}


def from_timm(
    tensors: Mapping[str, np.ndarray], spec: ModelSpec, interpolation: str = "timm"
) -> dict[str, np.ndarray]:
    """Converts tensors to this package's names and layouts.

    Args:
      tensors: name -> array of the file.
      spec: of the network.
      interpolation: rule by which positions are resized, see `positions.RULES`.

    Returns:
      Path -> float32 array; '? name' for a tensor that the network has no parameter for.
    """
    return {
        our_name(name) or f"? {name}": _to_our_layout(
            name, np.asarray(value, np.float32), spec, interpolation
        )
        for name, value in tensors.items()
    }


def to_timm(params: Tree, spec: ModelSpec) -> dict[str, np.ndarray]:
    """Converts parameters to timm's names and layouts.

    Args:
      params: of `ViT(spec)`.
      spec: of the network.

    Returns:
      Name -> array.

    Raises:
      UserError: residual maps differ from the identity, since timm has none; all layers are listed.
    """
    timm_names = {path: name for name, path in _WHOLE.items()}
    tensors, problems = {}, []
    for path, leaf in named_leaves(params):
        value = np.asarray(leaf)
        if "/residual_map/" in path:
            identity = np.eye(*value.shape) if path.endswith("kernel") else np.zeros(value.shape)
            if (difference := float(np.abs(value - identity).max())) > 0:
                problems.append(f"{path} is no plain residual (up to {difference:.2g} away)")
            continue
        name = timm_names.get(path) or _timm_name(path, spec.architecture.gated_mlp)
        if spec.architecture.fc_norm and name.startswith("norm."):
            name = f"fc_{name}"
        tensors[name] = _to_timm_layout(name, value, spec)
    if problems:
        raise UserError(f"a plain ViT cannot hold this network: {'; '.join(merge_layers(problems))}")
    return tensors


def our_name(name: str) -> str | None:
    """Returns this package's name of a tensor, None for an unknown one."""
    if name in _WHOLE:
        return _WHOLE[name]
    match = re.fullmatch(r"blocks\.(\d+)\.(.+)\.(weight|bias)", name)
    if not match or match[2] not in _LAYER:
        return None
    leaf = "bias" if match[3] == "bias" else "scale" if match[2].startswith("norm") else "kernel"
    return f"block_{match[1]}/{_LAYER[match[2]]}/{leaf}"


def _timm_name(path: str, gated_mlp: bool) -> str:
    block, our_module, leaf = path.split("/")
    names = {ours: timm_module for timm_module, ours in _LAYER.items()}
    module = "mlp.fc1_x" if gated_mlp and our_module == "fc1" else names[our_module]
    return f"blocks.{block.removeprefix('block_')}.{module}.{'bias' if leaf == 'bias' else 'weight'}"


def _to_our_layout(name: str, value: np.ndarray, spec: ModelSpec, interpolation: str) -> np.ndarray:
    if name == "patch_embed.proj.weight" and value.ndim == 4:
        return value.transpose(2, 3, 1, 0).reshape(-1, value.shape[0])
    if name in ("cls_token", "dist_token"):
        return value.reshape(-1)
    if name == "reg_token":
        return value.reshape(value.shape[-2:])
    if name == "pos_embed" and value.ndim > 1:
        return positions_for(value.reshape(value.shape[-2:]), spec, interpolation)
    return value.T if value.ndim == 2 else value


def _to_timm_layout(name: str, value: np.ndarray, spec: ModelSpec) -> np.ndarray:
    if name == "patch_embed.proj.weight":
        side = spec.patch_size
        return value.reshape(side, side, spec.channels, -1).transpose(3, 2, 0, 1)
    if name in ("cls_token", "dist_token", "reg_token", "pos_embed"):
        return value.reshape(1, -1, value.shape[-1])
    return value.T if value.ndim == 2 else value
