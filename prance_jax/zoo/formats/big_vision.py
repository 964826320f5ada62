"""ViT weights of big_vision and of the vision_transformer repository (.npz, Flax names) into this package's.

Both number the modules of a layer, each in its own way: LayerNorm_0, MultiHeadDotProductAttention_0, LayerNorm_1, MlpBlock_0 in
the first, LayerNorm_0, MultiHeadDotProductAttention_1, LayerNorm_2, MlpBlock_3 in the second. Heads are an axis of their own:
query, key, value [C, heads, D], out [heads, D, C]. Positions have the class token's in the second and not in the first.
Their GELU is the approximation by tanh, here it is the exact one, as in timm: activations differ by at most 5e-4.
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


def recognises(names: list[str]) -> bool:
    return any("Transformer/encoderblock" in name for name in names)


def from_big_vision(tensors: Mapping[str, np.ndarray], spec: ModelSpec, what: str) -> dict[str, np.ndarray]:
    """Arrays under this package's names; '? name' for one that has no place here.

    Raises UserError for a network that does not classify by a class token.
    """
    prefix = next((own for own in _PREFIXES if any(name.startswith(own) for name in tensors)), "")
    tensors = {name.removeprefix(prefix): np.asarray(value, np.float32) for name, value in tensors.items()}
    tensors = _unstacked(tensors)
    if any(name.startswith("MAPHead") for name in tensors):
        raise UserError(
            f"{what} pools tokens by attention (MAP head); this network classifies by a class token"
        )
    if "cls" not in tensors:
        raise UserError(
            f"{what} has no class token (cls), it pools by the mean; this network classifies by a class token"
        )
    found: dict[str, np.ndarray] = {}
    parts: dict[str, dict[str, np.ndarray]] = {}
    for name, value in tensors.items():
        path = _WHOLE.get(name) or _layer(name)
        if path is None:
            found[f"? {name}"] = value
        elif path.split("/")[-2:-1] in (["query"], ["key"], ["value"]):
            block, part, leaf = path.split("/")
            parts.setdefault(f"{block}/qkv/{leaf}", {})[part] = value
        else:
            found[path] = _arranged(path, value, spec)
    for path, own in parts.items():
        if own.keys() == {"query", "key", "value"}:
            wide = 1 if path.endswith("bias") else len(own["query"])
            columns = [own[part].reshape(wide, -1) for part in ("query", "key", "value")]
            found[path] = np.concatenate(columns, axis=1).reshape(-1 if path.endswith("bias") else (wide, -1))
    return found


def _unstacked(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Layers that were scanned over lie in one array, [depth, ...]."""
    whole = "Transformer/encoderblock/"
    found = {name: value for name, value in tensors.items() if not name.startswith(whole)}
    for name, value in tensors.items():
        if name.startswith(whole):
            own = name.removeprefix(whole)
            found |= {f"Transformer/encoderblock_{layer}/{own}": part for layer, part in enumerate(value)}
    return found


def _layer(name: str) -> str | None:
    """'block_0/proj/kernel'; of queries, keys and values 'block_0/query/kernel'."""
    match = re.fullmatch(r"Transformer/encoderblock_(\d+)/(.+)/(kernel|bias|scale)", name)
    if not match:
        return None
    block, module, leaf = match.groups()
    module = re.sub(r"(MultiHeadDotProductAttention|MlpBlock)_\d", r"\1", module)
    head, _, last = module.partition("/")
    if head == "MultiHeadDotProductAttention" and last in ("query", "key", "value"):
        return f"block_{block}/{last}/{leaf}"
    return f"block_{block}/{_LAYER[module]}/{leaf}" if module in _LAYER else None


def _arranged(path: str, value: np.ndarray, spec: ModelSpec) -> np.ndarray:
    if path == "patch_embed/kernel" or path.endswith("/proj/kernel"):
        return value.reshape(-1, value.shape[-1])
    if path == "cls_token":
        return value.reshape(-1)
    if path == "pos_embed":
        return positions_for(value.reshape(value.shape[-2:]), spec, "linear")
    return value
