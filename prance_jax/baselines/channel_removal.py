"""Removal of the channels behind closed gates: the result is a smaller dense network."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prance_jax.baselines.channel_gates import Gates, open_channels
from prance_jax.core.errors import UserError
from prance_jax.spec.model_spec import ModelSpec

Params = Any


def remove_channels(spec: ModelSpec, params: Params, gates: Gates) -> tuple[ModelSpec, Params]:
    """Removes the channels behind closed gates.

    The output is that of `apply_gates(params, gates)` up to rounding. A token method that reads
    keys may decide
    differently: keys are averaged over heads, and each head keeps other channels.

    Args:
      spec: the network.
      params: its parameters.
      gates: 1 or 0 for each channel; concrete values, not under `jit`.

    Returns:
      The network with `channels_left`, and its parameters.

    Raises:
      UserError: the heads of a layer have different numbers of open gates.
    """
    gates = jax.tree.map(np.asarray, gates)
    for name in ("qk", "vo"):
        counts = getattr(gates, name).sum(axis=2)
        for layer in np.flatnonzero((counts != counts[:, :1]).any(axis=1))[:1]:
            raise UserError(
                f"gates: heads of layer {layer} keep {counts[layer].astype(int).tolist()} channels ({name}); "
                "all heads of a layer must keep the same number"
            )
    channels, space = open_channels(gates), spec.space
    result = dict(params)
    for layer in range(space.depth):
        block = dict(params[f"block_{layer}"])
        qk, vo = (
            np.stack([np.flatnonzero(head) for head in getattr(gates, name)[layer]]) for name in ("qk", "vo")
        )
        units = np.flatnonzero(gates.hidden[layer])
        # Attention now divides by the root of the remaining channels, before by the root of all.
        scale = (channels.qk[layer] / space.head_dim) ** 0.5
        block["qkv"] = {
            name: _select_channels(weights, space.heads, (qk, qk, vo), scale)
            for name, weights in block["qkv"].items()
        }
        rows = (np.arange(space.heads)[:, None] * space.head_dim + vo).reshape(-1)
        block["proj"] = {**block["proj"], "kernel": block["proj"]["kernel"][rows]}
        for inputs in {"fc1", "fc1_g"} & set(block):
            block[inputs] = {name: weights[..., units] for name, weights in block[inputs].items()}
        block["fc2"] = {**block["fc2"], "kernel": block["fc2"]["kernel"][units]}
        result[f"block_{layer}"] = block
    return dataclasses.replace(spec, channels_left=channels), result


def _select_channels(weights: jax.Array, heads: int, kept: tuple[np.ndarray, ...], scale: float) -> jax.Array:
    """Kept columns of every head's queries, keys and values; queries are scaled."""
    parts = []
    for part, index in zip(jnp.split(weights, 3, axis=-1), kept):
        part = part.reshape(*part.shape[:-1], heads, -1)
        part = jnp.take_along_axis(part, jnp.asarray(index).reshape((1,) * (part.ndim - 2) + index.shape), -1)
        parts.append(part.reshape(*part.shape[:-2], -1))
    return jnp.concatenate([parts[0] * scale, *parts[1:]], axis=-1)
