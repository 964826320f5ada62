"""Starts a meta-network from the weights of a dense ViT.

`--config.meta.init_from=FILE` starts stage one at a dense ViT, `=dense` at the run's own dense
network.

A narrow structure is the leading slice of a wide one. So channels and hidden units of the dense
network are sorted by importance first, see `zoo.channel_order`. Residual maps start as the identity,
or as those of the dense network.

The structure of the dense network's width computes what the dense network computes (to 1e-5, by
test). Weights beyond the dense network that write into the residual stream are zero, so they change
nothing. Weights that read from it keep their random values, so they can learn. A wider structure
differs from the dense network, since LayerNorm includes its additional channels.

`deit_base` is the largest structure of the space `base`. `deit_tiny` and `deit_small` are inside their
spaces (width 192 of 240, 384 of 416).
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np

from prance_jax.core.errors import UserError
from prance_jax.spec.model_spec import ModelSpec
from prance_jax.spec.search_space import SearchSpace
from prance_jax.spec.structure import Structure
from prance_jax.zoo.channel_order import channel_order, hidden_order
from prance_jax.zoo.formats.match import fill_tree, named_leaves
from prance_jax.zoo.load import fill_network, to_our_names
from prance_jax.zoo.pretrained import Pretrained, open_pretrained

Tree = dict[str, Any]

# Meaning of each parameter's axes. stream: channels of the residual stream. qkv: columns of q, k and v.
# heads: rows of the output projection. hidden: units of the layer's MLP. A trailing "!": others read
# what the parameter writes along this axis.
_AXES = {
    "cls_token": ("stream!",),
    "dist_token": ("stream!",),
    "reg_token": (None, "stream!"),
    "pos_embed": (None, "stream!"),
    "patch_embed/kernel": (None, "stream!"),
    "patch_embed/bias": ("stream!",),
    "qkv/kernel": ("stream", "qkv"),
    "qkv/bias": ("qkv",),
    "proj/kernel": ("heads!", "stream!"),
    "proj/bias": ("stream!",),
    **{f"{inputs}/kernel": ("stream", "hidden") for inputs in ("fc1", "fc1_g")},
    **{f"{inputs}/bias": ("hidden",) for inputs in ("fc1", "fc1_g")},
    "fc2/kernel": ("hidden!", "stream!"),
    "fc2/bias": ("stream!",),
    "residual_map/kernel": ("stream", "stream"),
    "residual_map/bias": ("stream",),
    **{f"{norm}/{leaf}": ("stream",) for norm in ("norm", "norm1", "norm2") for leaf in ("scale", "bias")},
    **{f"norm_pre/{leaf}": ("stream!",) for leaf in ("scale", "bias")},
    **{f"{head}/kernel": ("stream", None) for head in ("head", "head_dist")},
    **{f"{head}/bias": (None,) for head in ("head", "head_dist")},
}


def meta_from_dense(dense: Tree, source: ModelSpec, spec: ModelSpec, fresh: Tree) -> Tree:
    """Puts the weights of a dense network into a meta-network.

    The structure `matching_structure(source, spec)` then computes what the dense network computes.
    A classifier for another number of classes keeps its random values.

    Args:
      dense: parameters of `ViT(source)`; its largest structure is used.
      source: of the dense network.
      spec: of the meta-network.
      fresh: parameters of `ViT(spec)`, as initialised.

    Returns:
      Parameters of `ViT(spec)`.

    Raises:
      UserError: lists all ways in which the dense network does not fit into the search space.
    """
    matching_structure(source, spec)
    dense_leaves, arrays = dict(named_leaves(dense)), {}
    width, inner = source.space.max_width, source.space.attention_width
    channels = channel_order(dense, source)
    hidden = {layer: hidden_order(dense, source, layer) for layer in range(source.space.depth)}
    # Along each kind of axis: indices in the dense network, indices in the meta-network.
    index_pairs = {
        "stream": (channels, np.arange(width)),
        "heads": (np.arange(inner), np.arange(inner)),
        "qkv": (
            np.arange(3 * inner),
            np.concatenate([part * spec.space.attention_width + np.arange(inner) for part in range(3)]),
        ),
    }
    for path, leaf in named_leaves(fresh):
        value = _identity(leaf) if "/residual_map/" in path else np.array(leaf)
        module, _, path_in_block = path.partition("/")
        layer = int(module.removeprefix("block_")) if module.startswith("block_") else None
        if path not in dense_leaves or (
            module.startswith("head") and dense_leaves[path].shape[-1] != value.shape[-1]
        ):
            arrays[path] = value  # a residual map, or a classifier for other classes
            continue
        dense_index, meta_index = [], []
        for axis, kind in enumerate(_AXES[path if layer is None else path_in_block]):
            name = (kind or "").removesuffix("!")
            if name == "hidden":
                pair = hidden[layer], np.arange(len(hidden[layer]))
            else:
                pair = index_pairs.get(name) or (np.arange(value.shape[axis]),) * 2
            dense_index.append(pair[0])
            meta_index.append(pair[1])
            if kind and kind.endswith("!"):
                beyond = np.setdiff1d(np.arange(value.shape[axis]), pair[1])
                np.moveaxis(value, axis, 0)[beyond] = 0
        value[np.ix_(*meta_index)] = np.asarray(dense_leaves[path])[np.ix_(*dense_index)]
        arrays[path] = value
    return fill_tree(arrays, fresh, "the dense network")


def matching_structure(source: ModelSpec, spec: ModelSpec) -> Structure:
    """Returns the structure of a meta-network that can hold a dense network.

    It has the dense network's width, the largest MLP ratio and all tokens.

    Args:
      source: of the dense network.
      spec: of the meta-network.

    Raises:
      UserError: lists all ways in which the dense network does not fit into the search space.
    """
    meta_space, dense_space = spec.space, source.space
    problems = [
        f"{name} {getattr(source, name)}, wanted {getattr(spec, name)}"
        for name in ("image_size", "patch_size", "channels", "norm_epsilon", "distilled", "architecture")
        if getattr(source, name) != getattr(spec, name)
    ]
    problems += [
        f"{name} {getattr(dense_space, name)}, wanted {getattr(meta_space, name)}"
        for name in ("depth", "head_dim")
        if getattr(dense_space, name) != getattr(meta_space, name)
    ]
    if dense_space.heads > meta_space.heads:
        problems.append(f"{dense_space.heads} heads, at most {meta_space.heads}")
    width, max_ratio = dense_space.max_width, meta_space.ratios[-1]
    mlp_limit = meta_space.mlp_dim(width, max_ratio)
    if width not in meta_space.widths:
        problems.append(f"width {width}, wanted one of {meta_space.widths}")
    elif dense_space.max_mlp_dim > mlp_limit:
        problems.append(f"{dense_space.max_mlp_dim} hidden units, at most {mlp_limit} at width {width}")
    dense_maps = set(dense_space.first_layers[1:]) if source.residual_maps else set()
    meta_maps = set(meta_space.first_layers[1:]) if spec.residual_maps else set()
    if not dense_maps <= meta_maps:
        problems.append("residual maps where this network has none")
    if problems:
        raise UserError(
            f"the dense network does not fit into the search space {meta_space.name!r}: {'; '.join(problems)}"
        )
    return meta_space.uniform(width, max_ratio, (1.0,) * spec.rates)


def load_dense(path: str | Path, spec: ModelSpec) -> tuple[Tree, ModelSpec]:
    """Reads the weights of a public dense network.

    Args:
      path: of a weight file, or an address, see `zoo.pretrained.open_pretrained`.
      spec: of the meta-network that starts from it; the image size is taken from it. So is LayerNorm's
        epsilon if config.json does not tell it.

    Returns:
      Parameters and specification of the dense network. A classifier is random if there is none.

    Raises:
      UserError: a parameter is missing, the number of heads is not known, or as in `load_weights`.
    """
    return _dense_of(open_pretrained(path), spec)


def _dense_of(opened: Pretrained, spec: ModelSpec) -> tuple[Tree, ModelSpec]:
    distilled = "dist_token" in opened.tensors
    arrays = to_our_names(opened.tensors, dataclasses.replace(spec, distilled=distilled), opened.origin)
    try:
        width, mlp_dim = arrays["block_0/fc1/kernel"].shape
        patch_values = len(arrays["patch_embed/kernel"])
        inner = len(arrays["block_0/proj/kernel"])
    except KeyError as error:
        raise UserError(f"{opened.origin} is not a complete ViT: it has no {error.args[0]}") from None
    depth, ratio = sum(name.endswith("/fc1/kernel") for name in arrays), SearchSpace.ratio(width, mlp_dim)
    heads, epsilon = opened.heads(), opened.config.norm_eps
    space = SearchSpace(
        Path(opened.origin).stem, width, ratio, heads, (width,), (ratio,), (depth,), inner // heads
    )
    source = dataclasses.replace(
        spec,
        space=space,
        patch_size=math.isqrt(patch_values // spec.channels),
        num_classes=len(arrays.get("head/bias", ())) or spec.num_classes,
        norm_epsilon=spec.norm_epsilon if epsilon is None or epsilon < 1e-6 else epsilon,
        pixels=False,
        distilled=distilled,
    )
    return fill_network(opened, source, fresh_head="head/bias" not in arrays), source


def load_initial_params(path: str | Path, spec: ModelSpec, fresh: Tree) -> Tree:
    """Reads the parameters that stage one starts with.

    Args:
      path: of weights of a meta-network or a dense network, see `zoo.pretrained.open_pretrained`.
      spec: of the meta-network.
      fresh: parameters of `ViT(spec)`, as initialised.

    Returns:
      A meta-network's parameters unchanged; a dense network's by `meta_from_dense`.
    """
    opened = open_pretrained(path)
    if opened.file_format in ("prance_jax", "official"):
        return fill_network(opened, spec)
    return meta_from_dense(*_dense_of(opened, spec), spec, fresh)


def _identity(leaf: Any) -> np.ndarray:
    """The kernel or bias of a residual map that is the identity."""
    return np.eye(*leaf.shape, dtype=np.float32) if leaf.ndim > 1 else np.zeros(leaf.shape, np.float32)
