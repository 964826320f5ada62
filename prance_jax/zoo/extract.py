"""A structure cut out of a meta-network: a plain, smaller ViT with weights of its own, which any ViT code can hold.

Exact, never an approximation. What can be folded is folded: MLPs of different sizes are filled up with silent units, the
bias of a residual map goes into the bias of the MLP before it, the width scaling of official deployment into the scales
of the norms. What a plain ViT cannot express is refused: a width that changes, dropped tokens, and a residual map that
mixes channels. The last cannot be folded anywhere: what follows it is a LayerNorm, whose statistics any change of basis
but a reordering would alter, and the MLP beside it reads normalised tokens only, which no longer know how long they were.
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
    """Parameters and specification of the plain ViT that a static structure is: its only structure computes the same.

    Raises UserError that lists everything in the way and names the nearest structure that has one width.
    """
    problems = obstacles(params, spec, structure)
    if problems:
        raise UserError(
            f"a plain ViT cannot hold this structure: {'; '.join(problems)}; {_advice(spec, structure, problems)}"
        )
    space, width, mlp_dim = spec.space, structure.widths[0], max(structure.mlp_dims)
    own = SearchSpace(
        f"{space.name} {width}/{mlp_dim}",
        width,
        SearchSpace.ratio(width, mlp_dim),
        space.heads,
        (width,),
        (SearchSpace.ratio(width, mlp_dim),),
        (space.depth,),
        space.head_dim,
    )
    share = math.sqrt(width / space.super_width) if spec.scale_norm else 1.0
    plain = dataclasses.replace(spec, space=own, residual_maps=False, enter_at_widest=False, scale_norm=False)
    out = {}
    for name, node in jax.tree.map(np.asarray, params).items():
        if name.startswith("block_"):
            out[name] = _block(
                node, width, structure.mlp_dims[int(name.removeprefix("block_"))], mlp_dim, share
            )
        elif name.startswith("head"):
            out[name] = {"kernel": node["kernel"][:width], "bias": node["bias"]}
        elif name == "norm":
            out[name] = _norm(node, width, share)
        else:  # tokens, positions, the patch embedding: channels are the last axis
            out[name] = jax.tree.map(lambda leaf: leaf[..., :width], node)
    return jax.tree.map(np.ascontiguousarray, out), plain


def obstacles(params: Tree, spec: ModelSpec, structure: Structure) -> list[str]:
    """What a plain ViT cannot express of a structure; empty where it can be cut out."""
    if not structure.static:
        return ["it is not static, every image has a structure of its own"]
    if spec.channels_left is not None:
        return ["its channels were pruned, heads of plain ViTs are as wide in every layer"]
    spec.space.check(structure, spec.rates)
    problems, widths = [], structure.widths
    if len(set(widths)) > 1:
        problems.append(f"its width changes ({', '.join(map(str, widths))})")
    dropping = [group for group, rates in enumerate(structure.keep, start=1) if min(rates) < 1]
    if dropping:
        problems.append(f"tokens are dropped before group {', '.join(map(str, dropping))}")
    if spec.enter_at_widest and set(widths) != {spec.space.max_width}:
        problems.append("groups are entered at the widest width (official deployment)")
    mixing = []
    for layer in range(spec.space.depth):
        residual_map = params[f"block_{layer}"].get("residual_map")
        if residual_map is not None:
            kernel = np.asarray(residual_map["kernel"])[: min(widths), : min(widths)]
            if (away := np.abs(kernel - np.eye(len(kernel))).max()) > 0:
                mixing.append(f"{layer} (up to {away:.2g})")
    if mixing:
        problems.append(f"the residual map differs from the identity in layer {', '.join(mixing)}")
    return problems


def nearest_uniform(spec: ModelSpec, structure: Structure) -> str:
    """WIDTHxRATIO of the structure of one width whose multiply-accumulates are nearest, all tokens kept in both."""
    space, full = spec.space, (1.0,) * spec.rates
    groups = [group._replace(keep=full if index else ()) for index, group in enumerate(structure.groups)]
    wanted = macs(spec, Structure(tuple(groups))).total

    def away(choice: tuple[int, float]) -> float:
        return abs(macs(spec, space.uniform(*choice, full)).total - wanted)

    width, ratio = min(((w, r) for w in space.widths for r in space.ratios), key=away)
    return f"{width}x{ratio:g}"


def _advice(spec: ModelSpec, structure: Structure, problems: list[str]) -> str:
    if spec.channels_left is not None:
        return "cut out of the network before its channels are pruned"
    if any("residual map" in problem for problem in problems):
        return "no structure of these weights can be cut out; train with model.residual_maps=False for that"
    return (
        f"nearest that can be cut out: {nearest_uniform(spec, structure)}"
        if structure.static
        else "choose one"
    )


def _block(block: Tree, width: int, units: int, mlp_dim: int, share: float) -> Tree:
    silent = mlp_dim - units
    bias = block["fc2"]["bias"][:width]
    if "residual_map" in block:
        bias = bias + block["residual_map"]["bias"][:width]
    return {
        "norm1": _norm(block["norm1"], width, share),
        "qkv": {"kernel": block["qkv"]["kernel"][:width], "bias": block["qkv"]["bias"]},
        "proj": {"kernel": block["proj"]["kernel"][:, :width], "bias": block["proj"]["bias"][:width]},
        "norm2": _norm(block["norm2"], width, share),
        "fc1": {
            "kernel": np.pad(block["fc1"]["kernel"][:width, :units], ((0, 0), (0, silent))),
            "bias": np.pad(block["fc1"]["bias"][:units], (0, silent)),
        },
        "fc2": {
            "kernel": np.pad(block["fc2"]["kernel"][:units, :width], ((0, silent), (0, 0))),
            "bias": bias,
        },
    }


def _norm(norm: Tree, width: int, share: float) -> Tree:
    return {"scale": np.float32(share) * norm["scale"][:width], "bias": norm["bias"][:width]}
