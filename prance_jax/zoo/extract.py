"""Extracts a structure of a meta-network as a plain, smaller ViT with its own weights.

The result is exact. A structure can be extracted if it has one width, keeps all tokens, and the
network has no trained residual maps (`--config.model.residual_maps=False`). Folded into the weights
are:

- MLPs of different sizes: padded with hidden units of weight zero;
- the bias of a residual map: added to the bias of the MLP before it;
- the width scaling of `ModelSpec.scale_norm`: multiplied into the scales of the norms.

A residual map that mixes channels cannot be folded. A LayerNorm follows it, and any change of basis
but a reordering would change its statistics. The parallel MLP reads normalised tokens, which have
lost their length, so it cannot compute the map either. Networks trained with residual maps (the
default, as in the paper) cannot be extracted; the error says so.

Where heads x head width differs from the width, timm needs a subclass of `Attention` that passes
`attn_head_dim`; the card of the file gives the value.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import numpy as np

from prance_jax.core.errors import UserError
from prance_jax.spec.macs import macs
from prance_jax.spec.model_spec import ModelSpec
from prance_jax.spec.search_space import SearchSpace
from prance_jax.spec.structure import Structure

Tree = dict[str, Any]


def extract_structure(params: Tree, spec: ModelSpec, structure: Structure) -> tuple[Tree, ModelSpec]:
    """Extracts a static structure as a plain ViT, which computes the same.

    Args:
      params: of `ViT(spec)`.
      spec: of the meta-network.
      structure: to extract; static.

    Returns:
      Parameters and specification of the plain ViT, whose only structure is this one.

    Raises:
      UserError: lists all obstacles and names the nearest structure of one width.
    """
    problems = obstacles(params, spec, structure)
    if problems:
        raise UserError(
            f"a plain ViT cannot hold this structure: {'; '.join(problems)}; "
            f"{_advice(spec, structure, problems)}"
        )
    space, width, mlp_dim = spec.space, structure.widths[0], max(structure.mlp_dims)
    plain_space = SearchSpace(
        f"{space.name} {width}/{mlp_dim}",
        width,
        SearchSpace.ratio(width, mlp_dim),
        space.heads,
        (width,),
        (SearchSpace.ratio(width, mlp_dim),),
        (space.depth,),
        space.head_dim,
    )
    norm_scale = math.sqrt(width / space.super_width) if spec.scale_norm else 1.0
    plain_spec = dataclasses.replace(
        spec, space=plain_space, residual_maps=False, enter_at_widest=False, scale_norm=False
    )
    plain_params = {}
    for name, node in jax.tree.map(np.asarray, params).items():
        if name.startswith("block_"):
            units = structure.mlp_dims[int(name.removeprefix("block_"))]
            plain_params[name] = _extract_block(node, width, units, mlp_dim, norm_scale)
        elif name.startswith("head"):
            plain_params[name] = {"kernel": node["kernel"][:width], "bias": node["bias"]}
        elif name in ("norm", "norm_pre"):
            plain_params[name] = _extract_norm(node, width, norm_scale)
        else:  # tokens, positions, the patch embedding: channels are the last axis
            plain_params[name] = jax.tree.map(lambda leaf: leaf[..., :width], node)
    return jax.tree.map(np.ascontiguousarray, plain_params), plain_spec


def obstacles(params: Tree, spec: ModelSpec, structure: Structure) -> list[str]:
    """Lists what a plain ViT cannot express of a structure.

    Args:
      params: of `ViT(spec)`.
      spec: of the meta-network.
      structure: to extract.

    Returns:
      One phrase for each obstacle; empty if the structure can be extracted.
    """
    if not structure.static:
        return ["it is per image, not static"]
    if spec.channels_left is not None:
        return ["its channels were pruned, while heads of a plain ViT have one width in all layers"]
    spec.space.check(structure, spec.rates)
    problems, widths = [], structure.widths
    if len(set(widths)) > 1:
        problems.append(f"its width changes ({', '.join(map(str, widths))})")
    reduced_groups = [group for group, rates in enumerate(structure.keep, start=1) if min(rates) < 1]
    if reduced_groups:
        problems.append(f"tokens are dropped before group {', '.join(map(str, reduced_groups))}")
    if spec.enter_at_widest and set(widths) != {spec.space.max_width}:
        problems.append("groups are entered at the widest width (enter_at_widest)")
    trained_maps = []
    for layer in range(spec.space.depth):
        residual_map = params[f"block_{layer}"].get("residual_map")
        if residual_map is not None:
            kernel = np.asarray(residual_map["kernel"])[: min(widths), : min(widths)]
            if (difference := np.abs(kernel - np.eye(len(kernel))).max()) > 0:
                trained_maps.append(f"{layer} (up to {difference:.2g})")
    if trained_maps:
        problems.append(f"the residual map differs from the identity in layer {', '.join(trained_maps)}")
    return problems


def nearest_uniform(spec: ModelSpec, structure: Structure) -> str:
    """Returns the structure of one width and MLP ratio whose MACs are nearest, as 'WIDTHxRATIO'.

    Args:
      spec: of the meta-network.
      structure: static; its keep rates are replaced by 1.
    """
    space, keep_all = spec.space, (1.0,) * spec.rates
    groups = [group._replace(keep=keep_all if index else ()) for index, group in enumerate(structure.groups)]
    target = macs(spec, Structure(tuple(groups))).total

    def distance(choice: tuple[int, float]) -> float:
        return abs(macs(spec, space.uniform(*choice, keep_all)).total - target)

    choices = ((width, ratio) for width in space.widths for ratio in space.ratios)
    width, ratio = min(choices, key=distance)
    return f"{width}x{ratio:g}"


def _advice(spec: ModelSpec, structure: Structure, problems: list[str]) -> str:
    """What can be extracted instead, as part of an error message."""
    if spec.channels_left is not None:
        return "extract it from the network before its channels are pruned"
    if any("residual map" in problem for problem in problems):
        return "no structure of these weights can be extracted; train with model.residual_maps=False"
    if not structure.static:
        return "choose a static structure"
    return f"nearest that can be extracted: {nearest_uniform(spec, structure)}"


def _extract_block(block: Tree, width: int, units: int, mlp_dim: int, norm_scale: float) -> Tree:
    """Slices a block to `width` channels and `units` hidden units, padded by zeros to `mlp_dim`."""
    num_padding = mlp_dim - units
    bias = block["fc2"]["bias"][:width]
    if "residual_map" in block:
        bias = bias + block["residual_map"]["bias"][:width]
    return {
        "norm1": _extract_norm(block["norm1"], width, norm_scale),
        "qkv": {"kernel": block["qkv"]["kernel"][:width], "bias": block["qkv"]["bias"]},
        "proj": {"kernel": block["proj"]["kernel"][:, :width], "bias": block["proj"]["bias"][:width]},
        "norm2": _extract_norm(block["norm2"], width, norm_scale),
        **{
            inputs: {
                "kernel": np.pad(block[inputs]["kernel"][:width, :units], ((0, 0), (0, num_padding))),
                "bias": np.pad(block[inputs]["bias"][:units], (0, num_padding)),
            }
            for inputs in ("fc1", "fc1_g")
            if inputs in block
        },
        "fc2": {
            "kernel": np.pad(block["fc2"]["kernel"][:units, :width], ((0, num_padding), (0, 0))),
            "bias": bias,
        },
    }


def _extract_norm(norm: Tree, width: int, norm_scale: float) -> Tree:
    return {"scale": np.float32(norm_scale) * norm["scale"][:width], "bias": norm["bias"][:width]}
