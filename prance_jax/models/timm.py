"""DeiT and ViT weights under timm's names, in both directions."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from prance_jax.errors import UserError
from prance_jax.models.official import fill, paths
from prance_jax.spec import ModelSpec

Tree = dict[str, Any]

_WHOLE = {
    "cls_token": "cls_token",
    "pos_embed": "pos_embed",
    "patch_embed.proj.weight": "patch_embed/kernel",
    "patch_embed.proj.bias": "patch_embed/bias",
    "norm.weight": "norm/scale",
    "norm.bias": "norm/bias",
    "head.weight": "head/kernel",
    "head.bias": "head/bias",
}
_LAYER = {
    "norm1": "norm1",
    "norm2": "norm2",
    "attn.qkv": "qkv",
    "attn.proj": "proj",
    "mlp.fc1": "fc1",
    "mlp.fc2": "fc2",
}


def from_timm(tensors: Mapping[str, np.ndarray], spec: ModelSpec, wanted: Tree, what: str) -> Tree:
    """Parameters of `ViT(spec)` from timm's tensors; residual maps, which timm has not, are the identity.

    Raises UserError that lists every tensor that is missing, left over or of another shape.
    """
    if "dist_token" in tensors:
        raise UserError(
            f"{what} is a distilled DeiT with two class tokens; this network has one, take the plain one"
        )
    found = {}
    for name, value in tensors.items():
        path = ours(name)
        found[path or f"? {name}"] = _to_ours(name, np.asarray(value, np.float32), spec)
    for path, leaf in paths(wanted):
        if "/residual_map/" in path and path not in found:
            kernel = path.endswith("kernel")
            found[path] = (
                np.eye(*leaf.shape, dtype=np.float32) if kernel else np.zeros(leaf.shape, np.float32)
            )
    classes = found.get("head/bias")
    if classes is not None and len(classes) != spec.num_classes:
        raise UserError(
            f"{what} has {len(classes)} classes, the model {spec.num_classes}: num_classes={len(classes)}"
        )
    return fill(found, wanted, what)


def to_timm(params: Tree, spec: ModelSpec) -> dict[str, np.ndarray]:
    """The same network under timm's names. Raises UserError where residual maps are not the identity: timm has none."""
    names = {own: name for name, own in _WHOLE.items()}
    found = {}
    for path, leaf in paths(params):
        value = np.asarray(leaf)
        if "/residual_map/" in path:
            plain = np.eye(*value.shape) if path.endswith("kernel") else np.zeros(value.shape)
            if np.abs(value - plain).max() > 0:
                raise UserError(f"{path} is no plain residual: a plain ViT cannot hold it")
            continue
        name = names.get(path) or _theirs(path)
        found[name] = _to_theirs(name, value, spec)
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
    if name == "patch_embed.proj.weight":
        return value.transpose(2, 3, 1, 0).reshape(-1, value.shape[0])
    if name == "cls_token":
        return value.reshape(-1)
    if name == "pos_embed":
        return resized(value.reshape(value.shape[-2:]), spec.tokens)
    return value.T if value.ndim == 2 else value


def _to_theirs(name: str, value: np.ndarray, spec: ModelSpec) -> np.ndarray:
    if name == "patch_embed.proj.weight":
        side = spec.patch_size
        return value.reshape(side, side, spec.channels, -1).transpose(3, 2, 0, 1)
    if name in ("cls_token", "pos_embed"):
        return value.reshape(1, -1, value.shape[-1])
    return value.T if value.ndim == 2 else value


def resized(embedding: np.ndarray, tokens: int) -> np.ndarray:
    """Position embeddings [1 + side^2, C] for another number of tokens: bicubic with antialiasing, CLS as it is (timm)."""
    if len(embedding) == tokens:
        return embedding
    old, new = round((len(embedding) - 1) ** 0.5), round((tokens - 1) ** 0.5)
    if old**2 + 1 != len(embedding) or new**2 + 1 != tokens:
        return embedding  # what does not fit is told by its shape
    grid = embedding[1:].reshape(old, old, -1)
    grid = jax.image.resize(grid, (new, new, grid.shape[-1]), "cubic", antialias=True)
    return np.concatenate([embedding[:1], np.asarray(grid).reshape(new**2, -1)])
