"""A meta-network that starts from a dense one: compression begins at pretrained weights.

A narrow structure is the leading slice of a wide one, so the channels and hidden units of the dense network are put in order of
importance first (as once-for-all networks sort theirs, Cai et al. 2020, arXiv 1908.09791). The order of the residual
stream is one for the whole network, in every tensor that reads or writes it; every MLP has an order of its own. Residual
maps that the dense network has not start as the identity.

Stored weights beyond the dense network: what would write into the residual stream is zero, so that nothing changes; what reads
keeps its fresh value, so that it can learn. A structure as wide as the dense network is that network. A wider one is not
exactly: LayerNorm runs over its additional channels too.
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
from prance_jax.zoo.formats.files import read_tensors
from prance_jax.zoo.formats.match import fill_tree, paths
from prance_jax.zoo.load import detect_format, load_weights, to_our_names

Tree = dict[str, Any]

# What the axes of a leaf are. stream: channels of the residual stream; qkv, heads: columns of q, k and v, rows of the output
# projection; hidden: units of the layer's MLP. A trailing "!": the leaf writes along it what others read.
_AXES = {
    "cls_token": ("stream!",),
    "dist_token": ("stream!",),
    "pos_embed": (None, "stream!"),
    "patch_embed/kernel": (None, "stream!"),
    "patch_embed/bias": ("stream!",),
    "qkv/kernel": ("stream", "qkv"),
    "qkv/bias": ("qkv",),
    "proj/kernel": ("heads!", "stream!"),
    "proj/bias": ("stream!",),
    "fc1/kernel": ("stream", "hidden"),
    "fc1/bias": ("hidden",),
    "fc2/kernel": ("hidden!", "stream!"),
    "fc2/bias": ("stream!",),
    "residual_map/kernel": ("stream", "stream"),
    "residual_map/bias": ("stream",),
    **{f"{norm}/{leaf}": ("stream",) for norm in ("norm", "norm1", "norm2") for leaf in ("scale", "bias")},
    **{f"{head}/kernel": ("stream", None) for head in ("head", "head_dist")},
    **{f"{head}/bias": (None,) for head in ("head", "head_dist")},
}


def meta_from_dense(dense: Tree, source: ModelSpec, spec: ModelSpec, fresh: Tree) -> Tree:
    """Parameters of `ViT(spec)` whose structure `same_structure(source, spec)` computes what the dense network computes.

    dense: parameters of `ViT(source)`, of which the largest structure is meant. fresh: parameters of `ViT(spec)` as
    initialised. A classifier for another number of classes stays fresh. Raises UserError that lists everything in which
    the dense network does not fit into the search space.
    """
    same_structure(source, spec)
    flat, found = dict(paths(dense)), {}
    width, inner = source.space.max_width, source.space.attention_width
    stream = channel_order(dense, source)
    hidden = {layer: hidden_order(dense, source, layer) for layer in range(source.space.depth)}
    places = {
        "stream": (stream, np.arange(width)),
        "heads": (np.arange(inner), np.arange(inner)),
        "qkv": (
            np.arange(3 * inner),
            np.concatenate([part * spec.space.attention_width + np.arange(inner) for part in range(3)]),
        ),
    }
    for path, leaf in paths(fresh):
        value = _plain_residual(leaf) if "/residual_map/" in path else np.array(leaf)
        block, _, rest = path.partition("/")
        layer = int(block.removeprefix("block_")) if block.startswith("block_") else None
        if path not in flat or (block.startswith("head") and flat[path].shape[-1] != value.shape[-1]):
            found[path] = value  # a residual map, or a classifier for other classes
            continue
        rows, columns = [], []  # where from, where to
        for axis, kind in enumerate(_AXES[path if layer is None else rest]):
            name = (kind or "").removesuffix("!")
            order = (hidden[layer], np.arange(len(hidden[layer]))) if name == "hidden" else places.get(name)
            order = order or (np.arange(value.shape[axis]),) * 2
            rows.append(order[0])
            columns.append(order[1])
            if kind and kind.endswith("!"):
                beyond = np.setdiff1d(np.arange(value.shape[axis]), order[1])
                np.moveaxis(value, axis, 0)[beyond] = 0
        value[np.ix_(*columns)] = np.asarray(flat[path])[np.ix_(*rows)]
        found[path] = value
    return fill_tree(found, fresh, "the dense network")


def same_structure(source: ModelSpec, spec: ModelSpec) -> Structure:
    """The structure of `spec` in which a dense network has its place: its width, the largest ratio, all tokens.

    Raises UserError that lists everything that stands in the way.
    """
    mine, theirs = spec.space, source.space
    problems = [
        f"{name} {getattr(source, name)}, wanted {getattr(spec, name)}"
        for name in ("image_size", "patch_size", "channels", "norm_epsilon", "distilled")
        if getattr(source, name) != getattr(spec, name)
    ]
    problems += [
        f"{name} {getattr(theirs, name)}, wanted {getattr(mine, name)}"
        for name in ("depth", "head_dim")
        if getattr(theirs, name) != getattr(mine, name)
    ]
    if theirs.heads > mine.heads:
        problems.append(f"{theirs.heads} heads, at most {mine.heads}")
    room = mine.mlp_dim(theirs.max_width, mine.ratios[-1])
    if theirs.max_width not in mine.widths:
        problems.append(f"width {theirs.max_width}, wanted one of {mine.widths}")
    elif theirs.max_mlp_dim > room:
        problems.append(f"{theirs.max_mlp_dim} hidden units, at most {room} at width {theirs.max_width}")
    mapped = set(theirs.first_layers[1:]) if source.residual_maps else set()
    if not mapped <= (set(mine.first_layers[1:]) if spec.residual_maps else set()):
        problems.append("residual maps where this network has none")
    if problems:
        raise UserError(
            f"the dense network does not fit into the search space {mine.name!r}: {'; '.join(problems)}"
        )
    return mine.uniform(theirs.max_width, mine.ratios[-1], (1.0,) * spec.rates)


def channel_order(dense: Tree, spec: ModelSpec) -> np.ndarray:
    """Channels of the residual stream, the most important first: by the product of the norms of all weights that write one and of
    all that read it (behind the scale of their LayerNorm)."""
    width = spec.space.max_width
    wrote = _energy(dense["patch_embed"]["kernel"], 0) + np.asarray(dense["pos_embed"]).var(axis=0)
    read = _energy(dense["head"]["kernel"], 1) * np.square(dense["norm"]["scale"])
    for layer in range(spec.space.depth):
        block = dense[f"block_{layer}"]
        wrote = wrote + _energy(block["proj"]["kernel"], 0) + _energy(block["fc2"]["kernel"], 0)
        read = read + _energy(block["qkv"]["kernel"], 1) * np.square(block["norm1"]["scale"])
        read = read + _energy(block["fc1"]["kernel"], 1) * np.square(block["norm2"]["scale"])
    return np.argsort(-(wrote * read)[:width], kind="stable")


def hidden_order(dense: Tree, spec: ModelSpec, layer: int) -> np.ndarray:
    """Hidden units of a layer's MLP, the most important first: by the product of the norms of what one reads and writes."""
    block, width = dense[f"block_{layer}"], spec.space.max_width
    scale = np.asarray(block["norm2"]["scale"])[:width, None]
    read = _energy(np.asarray(block["fc1"]["kernel"])[:width] * scale, 0)
    read = read + np.square(block["fc1"]["bias"])
    wrote = _energy(np.asarray(block["fc2"]["kernel"])[:, :width], 1)
    return np.argsort(-(read * wrote)[: spec.space.max_mlp_dim], kind="stable")


def dense_weights(path: str | Path, spec: ModelSpec) -> tuple[Tree, ModelSpec]:
    """A dense checkpoint (timm's or big_vision's names) and its specification, whose sizes are read from the file.

    spec: of the network that is to start from it: image size, head width and LayerNorm's epsilon, which no file tells, are its.
    Raises UserError as `load_weights` does.
    """
    tensors, what = read_tensors(path), str(path)
    found = to_our_names(tensors, dataclasses.replace(spec, distilled="dist_token" in tensors), what)
    try:
        width, hidden = found["block_0/fc1/kernel"].shape
        inner, classes = len(found["block_0/proj/kernel"]), len(found["head/bias"])
        values = len(found["patch_embed/kernel"])
    except KeyError as error:
        raise UserError(f"{what} is no whole ViT: it has no {error.args[0]}") from None
    depth, head_dim = sum(name.endswith("/fc1/kernel") for name in found), spec.space.head_dim
    ratio = SearchSpace.ratio(width, hidden)
    space = SearchSpace(
        Path(path).stem, width, ratio, inner // head_dim, (width,), (ratio,), (depth,), head_dim
    )
    source = dataclasses.replace(
        spec,
        space=space,
        patch_size=math.isqrt(values // spec.channels),
        num_classes=classes,
        pixels=False,
        distilled="dist_token" in found,
    )
    return load_weights(path, source), source


def load_start(path: str | Path, spec: ModelSpec, fresh: Tree) -> Tree:
    """Parameters to begin stage one with, from a file: a meta-network's as they are, a dense network's by `meta_from_dense`."""
    if detect_format(read_tensors(path)) in ("prance_jax", "official"):
        return load_weights(path, spec)
    return meta_from_dense(*dense_weights(path, spec), spec, fresh)


def _plain_residual(leaf: Any) -> np.ndarray:
    return np.eye(*leaf.shape, dtype=np.float32) if leaf.ndim > 1 else np.zeros(leaf.shape, np.float32)


def _energy(kernel: Any, axis: int) -> np.ndarray:
    """Sums of squares over an axis."""
    return np.square(np.asarray(kernel)).sum(axis=axis)
