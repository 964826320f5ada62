"""Sorts the channels and hidden units of a dense network by importance, as in once-for-all networks.

The residual stream has one order in the whole network; every MLP has its own order.

Reference: Cai et al. 2020, Once-for-All, arXiv 1908.09791.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from prance_jax.spec.model_spec import ModelSpec

Tree = dict[str, Any]


def channel_order(dense: Tree, spec: ModelSpec) -> np.ndarray:
    """Sorts the channels of the residual stream, the most important first.

    The importance is the product of two sums of squares: of the weights that write the channel, and
    of the weights that read it, multiplied by the scale of their LayerNorm.

    Args:
      dense: parameters of `ViT(spec)`.
      spec: of the dense network.

    Returns:
      Channel indices, int [width].
    """
    width = spec.space.max_width
    write = _energy(dense["patch_embed"]["kernel"], 0)
    if "pos_embed" in dense:
        write = write + np.asarray(dense["pos_embed"]).var(axis=0)
    if "norm_pre" in dense:
        write = np.square(dense["norm_pre"]["scale"])
    head = _energy(dense["head"]["kernel"], 1) if "head" in dense else 1.0
    read = head * np.square(dense["norm"]["scale"])
    for layer in range(spec.space.depth):
        block = dense[f"block_{layer}"]
        write = write + _energy(block["proj"]["kernel"], 0) + _energy(block["fc2"]["kernel"], 0)
        read = read + _energy(block["qkv"]["kernel"], 1) * np.square(block["norm1"]["scale"])
        for inputs in {"fc1", "fc1_g"} & set(block):
            read = read + _energy(block[inputs]["kernel"], 1) * np.square(block["norm2"]["scale"])
    return np.argsort(-(write * read)[:width], kind="stable")


def hidden_order(dense: Tree, spec: ModelSpec, layer: int) -> np.ndarray:
    """Sorts the hidden units of a layer's MLP, the most important first.

    The importance is the product of the sums of squares of a unit's input and output weights.

    Args:
      dense: parameters of `ViT(spec)`.
      spec: of the dense network.
      layer: index of the layer.

    Returns:
      Unit indices, int [hidden units].
    """
    block, width = dense[f"block_{layer}"], spec.space.max_width
    scale = np.asarray(block["norm2"]["scale"])[:width, None]
    read = 0.0
    for inputs in {"fc1", "fc1_g"} & set(block):
        read = read + _energy(np.asarray(block[inputs]["kernel"])[:width] * scale, 0)
        read = read + np.square(block[inputs]["bias"])
    write = _energy(np.asarray(block["fc2"]["kernel"])[:, :width], 1)
    return np.argsort(-(read * write)[: spec.space.max_mlp_dim], kind="stable")


def _energy(kernel: Any, axis: int) -> np.ndarray:
    """Sums of squares over an axis."""
    return np.square(np.asarray(kernel)).sum(axis=axis)
