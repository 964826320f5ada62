"""Converts the released PRANCE files: the meta-network, the actor and the critic.

Layout of the files (github.com/ChildTang/PRANCE):

- Linear weights are PyTorch's [out, in].
- Rows of q, k and v are interleaved: row r belongs to q, k or v by r mod 3. Their biases are
  contiguous.
- q, k and v are stored with as many channels as the super width. The leading heads x head width are
  used: `tiny` stores 256 channels and uses 192.

`ModelSpec.official` switches the network to what the released inference code computes. On golden
outputs of that code (12 images, pruning and merging) every decision and token count is equal, and
logits agree to 1e-6 relative. A detail that the paper's text lacks: the norm of a decision point's
attention is scaled by the chosen width, though it reads the largest width.
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


def meta_network(tensors: Mapping[str, np.ndarray], spec: ModelSpec, template: Tree) -> Tree:
    """Converts the tensors of a released meta-network to parameters of `ViT(spec)`.

    Args:
      tensors: name without a prefix (for example 'blocks.0.fc1.weight') -> array.
      spec: of the network.
      template: parameters of `ViT(spec)`, or their shapes.

    Raises:
      UserError: lists every tensor that is missing, not used or of another shape.
    """
    return fill_tree(from_released_prance(tensors, spec), template, "official PRANCE meta-network")


def is_released_prance(names: list[str]) -> bool:
    """Returns whether tensor names are those of a released PRANCE meta-network."""
    return any("patch_embed_super" in name for name in names)


def from_released_prance(tensors: Mapping[str, np.ndarray], spec: ModelSpec) -> dict[str, np.ndarray]:
    """Converts tensors of a released meta-network to this package's names and layouts.

    Args:
      tensors: name -> array.
      spec: of the network.

    Returns:
      Path -> float32 array; '? name' for a tensor that the network has no parameter for.
    """
    return {
        _our_name(name) or f"? {name}": _convert(name, np.asarray(value, np.float32), spec)
        for name, value in tensors.items()
    }


def selector_params(tensors: Mapping[str, np.ndarray], template: Tree, kind: str) -> Tree:
    """Converts the tensors of a released actor or critic.

    Args:
      tensors: name (for example 'fc1.weight') -> array.
      template: parameters of the network, or their shapes.
      kind: 'actor' or 'critic', for error messages.

    Raises:
      UserError: lists every tensor that is missing, not used or of another shape.
    """
    arrays = {}
    for name, value in tensors.items():
        layer, leaf = name.rsplit(".", 1)
        value = np.asarray(value, np.float32)
        arrays[f"{layer}/{'kernel' if leaf == 'weight' else 'bias'}"] = value.T if leaf == "weight" else value
    return fill_tree(arrays, template, f"official PRANCE {kind}")


def _our_name(name: str) -> str | None:
    """This package's name of a tensor, None for an unknown one."""
    outside_layers = {
        "pos_embed": "pos_embed",
        "cls_token": "cls_token",
        "patch_embed_super.proj.weight": "patch_embed/kernel",
        "patch_embed_super.proj.bias": "patch_embed/bias",
        "norm.weight": "norm/scale",
        "norm.bias": "norm/bias",
        "head.weight": "head/kernel",
        "head.bias": "head/bias",
    }
    if name in outside_layers:
        return outside_layers[name]
    match = re.fullmatch(r"blocks\.(\d+)\.(.+)\.(weight|bias)", name)
    if not match:
        return None
    layer, module, kind = match.groups()
    our_module = "qkv" if module == "attn.qkv" else _LAYER_NAMES.get(module)
    if our_module is None:
        return None
    leaf = "bias" if kind == "bias" else "scale" if module.endswith("layer_norm") else "kernel"
    return f"block_{layer}/{our_module}/{leaf}"


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
