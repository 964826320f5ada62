"""Tensors of public ViTs under timm's names, in a layout that does not depend on the family."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from prance_jax.core.errors import UserError
from prance_jax.zoo.families.names import NameTable


def timm_tensors(tensors: Mapping[str, np.ndarray], table: NameTable, origin: Any) -> dict[str, np.ndarray]:
    """Renames tensors to timm's names.

    Queries, keys and values are one matrix `attn.qkv`; the halves of a packed gated MLP are `mlp.fc1_g`
    and `mlp.fc1_x`; the position of CLS in networks with registers is added to CLS. A bias that the whole
    network lacks is not made up, see `fold`.

    Args:
      tensors: name -> array of the file.
      table: names of the file.
      origin: path of the file, for error messages.

    Returns:
      Name -> float32 array; names that the table does not have stay.

    Raises:
      UserError: two tensors have one meaning.
    """
    result: dict[str, np.ndarray] = {}
    for name, value in tensors.items():
        timm_name = table.timm_name(name)
        if timm_name == "":
            continue
        value = np.asarray(value, np.float32)
        if timm_name == "head.weight.T":
            timm_name, value = "head.weight", value.T
        timm_name = timm_name or name
        if timm_name in result:
            raise UserError(f"{origin} holds {name} and another tensor for the same weights ({timm_name})")
        result[timm_name] = value
    for index in range(num_layers(result)):
        _merge_qkv(result, f"blocks.{index}.")
        _split_gate(result, f"blocks.{index}.mlp.")
    return _add_class_position(result)


def num_layers(tensors: Mapping[str, np.ndarray]) -> int:
    """Counts the layers of tensors under timm's names."""
    layers = [
        int(name.split(".")[1])
        for name in tensors
        if name.startswith("blocks.") and name.split(".")[1].isdigit()
    ]
    return max(layers, default=-1) + 1


def fold(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Folds LayerScale into the weights before it, and makes biases of zeros where all layers lack them.

    LayerScale multiplies the output of a branch: x + gamma * (y W + b) = x + y (W gamma) + gamma b.

    Args:
      tensors: under timm's names, see `timm_tensors`.
    """
    result, layers = dict(tensors), num_layers(tensors)
    lacks_bias = not any(f"blocks.{index}.attn.qkv.bias" in tensors for index in range(layers))
    for index in range(layers):
        layer = f"blocks.{index}."
        for scale, branch in (("ls1.gamma", "attn.proj"), ("ls2.gamma", "mlp.fc2")):
            gamma, weight = result.get(layer + scale), result.get(f"{layer}{branch}.weight")
            if gamma is not None and weight is not None and gamma.shape == weight.shape[:1]:
                del result[layer + scale]
                result[f"{layer}{branch}.weight"] = weight * gamma[:, None]
                if f"{layer}{branch}.bias" in result:
                    result[f"{layer}{branch}.bias"] = result[f"{layer}{branch}.bias"] * gamma
        weight = result.get(f"{layer}attn.qkv.weight")
        if lacks_bias and weight is not None:
            result[f"{layer}attn.qkv.bias"] = np.zeros(len(weight), np.float32)
    if "norm_pre.weight" in result:  # CLIP has no bias there
        for module in ("patch_embed.proj", "head"):
            if f"{module}.weight" in result:
                zeros = np.zeros(len(result[f"{module}.weight"]), np.float32)
                result.setdefault(f"{module}.bias", zeros)
    return result


def _merge_qkv(tensors: dict[str, np.ndarray], layer: str) -> None:
    """Joins q, k and v; a part without a bias, where others have one, has a bias of zeros."""
    weights = [tensors.get(f"{layer}attn.{part}.weight") for part in "qkv"]
    if all(weight is not None for weight in weights):
        biases = [tensors.pop(f"{layer}attn.{part}.bias", None) for part in "qkv"]
        for part in "qkv":
            del tensors[f"{layer}attn.{part}.weight"]
        tensors[f"{layer}attn.qkv.weight"] = np.concatenate(weights)
        if any(bias is not None for bias in biases):
            zeros = [np.zeros(len(weight), np.float32) for weight in weights]
            biases = [zero if bias is None else bias for bias, zero in zip(biases, zeros)]
            tensors[f"{layer}attn.qkv.bias"] = np.concatenate(biases)
    q_bias, v_bias = (tensors.pop(f"{layer}attn.{part}_bias", None) for part in "qv")
    if q_bias is not None and v_bias is not None:
        tensors[f"{layer}attn.qkv.bias"] = np.concatenate([q_bias, np.zeros_like(q_bias), v_bias])
    mask = tensors.pop(f"{layer}attn.qkv.bias_mask", None)  # of DINOv3: the bias of keys counts as zero
    if mask is not None and f"{layer}attn.qkv.bias" in tensors:
        bias = tensors[f"{layer}attn.qkv.bias"].copy()
        bias[len(bias) // 3 : 2 * len(bias) // 3] = 0
        tensors[f"{layer}attn.qkv.bias"] = bias


def _split_gate(tensors: dict[str, np.ndarray], mlp: str) -> None:
    """Splits a packed fc1 = [gate; value]; it has twice the rows that fc2 has columns."""
    if f"{mlp}fc1_g.weight" in tensors and f"{mlp}fc1.weight" in tensors:
        for leaf in ("weight", "bias"):
            if f"{mlp}fc1.{leaf}" in tensors:
                tensors[f"{mlp}fc1_x.{leaf}"] = tensors.pop(f"{mlp}fc1.{leaf}")
        return
    first, second = tensors.get(f"{mlp}fc1.weight"), tensors.get(f"{mlp}fc2.weight")
    if first is None or second is None or len(first) != 2 * second.shape[-1]:
        return
    for leaf in ("weight", "bias"):
        if f"{mlp}fc1.{leaf}" in tensors:
            gate, value = np.split(tensors.pop(f"{mlp}fc1.{leaf}"), 2)
            tensors |= {f"{mlp}fc1_g.{leaf}": gate, f"{mlp}fc1_x.{leaf}": value}


def _add_class_position(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """DINOv2 with registers outside timm: the first position is CLS's, registers have none."""
    if not {"reg_token", "cls_token", "pos_embed"} <= tensors.keys():
        return tensors
    positions = tensors["pos_embed"].reshape(-1, tensors["pos_embed"].shape[-1])
    if math.isqrt(len(positions) - 1) ** 2 != len(positions) - 1:
        return tensors
    token = tensors["cls_token"]
    return {
        **tensors,
        "cls_token": token + positions[0].reshape(token.shape),
        "pos_embed": positions[None, 1:],
    }
