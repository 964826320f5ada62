"""Converts ViT weights of big_vision and the vision_transformer repository (.npz, Flax names).

- Modules of a layer are numbered. big_vision: LayerNorm_0, MultiHeadDotProductAttention_0,
  LayerNorm_1, MlpBlock_0. vision_transformer: LayerNorm_0, MultiHeadDotProductAttention_1,
  LayerNorm_2, MlpBlock_3.
- Heads have their own axis: query, key, value [C, heads, D], out [heads, D, C].
- Positions include the class token's in vision_transformer, not in big_vision.
- GELU is the tanh approximation there. Here it is exact, as in timm; activations differ by at most
  5e-4.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

from prance_jax.core.errors import UserError
from prance_jax.spec.model_spec import ModelSpec
from prance_jax.zoo.formats.positions import positions_for

_PREFIXES = ("params/", "opt/target/")
_WHOLE = {
    "embedding/kernel": "patch_embed/kernel",
    "embedding/bias": "patch_embed/bias",
    "cls": "cls_token",
    "pos_embedding": "pos_embed",
    "Transformer/posembed_input/pos_embedding": "pos_embed",
    "Transformer/encoder_norm/scale": "norm/scale",
    "Transformer/encoder_norm/bias": "norm/bias",
    "head/kernel": "head/kernel",
    "head/bias": "head/bias",
}
_LAYER = {
    "LayerNorm_0": "norm1",
    "LayerNorm_1": "norm2",
    "LayerNorm_2": "norm2",
    "MultiHeadDotProductAttention/out": "proj",
    "MlpBlock/Dense_0": "fc1",
    "MlpBlock/Dense_1": "fc2",
}


def is_big_vision(names: list[str]) -> bool:
    """Returns whether tensor names are those of big_vision or vision_transformer."""
    return any("Transformer/encoderblock" in name for name in names)


def num_heads(tensors: Mapping[str, np.ndarray]) -> int | None:
    """Returns the heads of a layer, the middle axis of the queries' kernel; None without one.

    Args:
      tensors: name -> array of the file.
    """
    kernels = [value for name, value in tensors.items() if name.endswith("/query/kernel")]
    return kernels[0].shape[-2] if kernels else None


def from_big_vision(tensors: Mapping[str, np.ndarray], spec: ModelSpec, origin: str) -> dict[str, np.ndarray]:
    """Converts tensors to this package's names and layouts.

    Args:
      tensors: name -> array of the file.
      spec: of the network.
      origin: path of the file, for error messages.

    Returns:
      Path -> float32 array; '? name' for a tensor that the network has no parameter for.

    Raises:
      UserError: the network of the file does not classify by a class token.
    """
    prefixes = (prefix for prefix in _PREFIXES if any(name.startswith(prefix) for name in tensors))
    prefix = next(prefixes, "")
    tensors = {name.removeprefix(prefix): np.asarray(value, np.float32) for name, value in tensors.items()}
    tensors = _unstack_layers(tensors)
    if any(name.startswith("MAPHead") for name in tensors):
        raise UserError(
            f"{origin} pools tokens by attention (MAP head); this network classifies by a class token"
        )
    if "cls" not in tensors:
        raise UserError(
            f"{origin} has no class token (cls), it pools by the mean; "
            "this network classifies by a class token"
        )
    arrays: dict[str, np.ndarray] = {}
    qkv_parts: dict[str, dict[str, np.ndarray]] = {}
    for name, value in tensors.items():
        path = _WHOLE.get(name) or _layer_path(name)
        if path is None:
            arrays[f"? {name}"] = value
        elif path.split("/")[-2:-1] in (["query"], ["key"], ["value"]):
            block, part, leaf = path.split("/")
            qkv_parts.setdefault(f"{block}/qkv/{leaf}", {})[part] = value
        else:
            arrays[path] = _convert(path, value, spec)
    for path, parts in qkv_parts.items():
        if parts.keys() == {"query", "key", "value"}:
            rows = 1 if path.endswith("bias") else len(parts["query"])
            columns = [parts[part].reshape(rows, -1) for part in ("query", "key", "value")]
            qkv = np.concatenate(columns, axis=1)
            arrays[path] = qkv.reshape(-1) if path.endswith("bias") else qkv
    return arrays


def _unstack_layers(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Splits the arrays [depth, ...] of layers that ran under `nn.scan`."""
    prefix = "Transformer/encoderblock/"
    result = {name: value for name, value in tensors.items() if not name.startswith(prefix)}
    for name, value in tensors.items():
        if name.startswith(prefix):
            suffix = name.removeprefix(prefix)
            result |= {f"Transformer/encoderblock_{layer}/{suffix}": part for layer, part in enumerate(value)}
    return result


def _layer_path(name: str) -> str | None:
    """Our path of a layer's tensor: 'block_0/proj/kernel', or 'block_0/query/kernel' in qkv."""
    match = re.fullmatch(r"Transformer/encoderblock_(\d+)/(.+)/(kernel|bias|scale)", name)
    if not match:
        return None
    block, module, leaf = match.groups()
    module = re.sub(r"(MultiHeadDotProductAttention|MlpBlock)_\d", r"\1", module)
    parent, _, part = module.partition("/")
    if parent == "MultiHeadDotProductAttention" and part in ("query", "key", "value"):
        return f"block_{block}/{part}/{leaf}"
    return f"block_{block}/{_LAYER[module]}/{leaf}" if module in _LAYER else None


def _convert(path: str, value: np.ndarray, spec: ModelSpec) -> np.ndarray:
    if path == "patch_embed/kernel" or path.endswith("/proj/kernel"):
        return value.reshape(-1, value.shape[-1])
    if path == "cls_token":
        return value.reshape(-1)
    if path == "pos_embed":
        return positions_for(value.reshape(value.shape[-2:]), spec, "linear")
    return value
