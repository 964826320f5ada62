"""Closed gates become a smaller dense network."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prance_jax.baselines.channel_gates import Gates, channels_left
from prance_jax.core.errors import UserError
from prance_jax.spec.model_spec import ModelSpec

Params = Any


def remove_channels(spec: ModelSpec, params: Params, gates: Gates) -> tuple[ModelSpec, Params]:
    """The network without what is behind closed gates: its specification, with `channels_left`, and its parameters.

    The output is that of `gated(params, gates)` to rounding. What it tells a token method may differ: keys are averaged
    over heads, and heads keep channels of their own. Raises UserError for gates that are not consistent over heads.
    """
    gates = jax.tree.map(np.asarray, gates)
    for name in ("qk", "vo"):
        counts = getattr(gates, name).sum(axis=2)
        for layer in np.flatnonzero((counts != counts[:, :1]).any(axis=1))[:1]:
            raise UserError(
                f"gates: heads of layer {layer} keep {counts[layer].astype(int).tolist()} channels ({name}); they must keep "
                "as many"
            )
    left, space = channels_left(gates), spec.space
    result = dict(params)
    for layer in range(space.depth):
        block = dict(params[f"block_{layer}"])
        qk, vo = (
            np.stack([np.flatnonzero(head) for head in getattr(gates, name)[layer]]) for name in ("qk", "vo")
        )
        units = np.flatnonzero(gates.hidden[layer])
        # Attention divides by the square root of the channels that are left; it was of all.
        scale = (left.qk[layer] / space.head_dim) ** 0.5
        block["qkv"] = {
            name: _heads(weights, space.heads, (qk, qk, vo), scale) for name, weights in block["qkv"].items()
        }
        rows = (np.arange(space.heads)[:, None] * space.head_dim + vo).reshape(-1)
        block["proj"] = {**block["proj"], "kernel": block["proj"]["kernel"][rows]}
        block["fc1"] = {name: weights[..., units] for name, weights in block["fc1"].items()}
        block["fc2"] = {**block["fc2"], "kernel": block["fc2"]["kernel"][units]}
        result[f"block_{layer}"] = block
    return dataclasses.replace(spec, channels_left=left), result


def _heads(weights: jax.Array, heads: int, kept: tuple[np.ndarray, ...], scale: float) -> jax.Array:
    """Columns (queries, keys, values) of every head that are kept; queries scaled."""
    parts = []
    for part, index in zip(jnp.split(weights, 3, axis=-1), kept):
        part = part.reshape(*part.shape[:-1], heads, -1)
        part = jnp.take_along_axis(part, jnp.asarray(index).reshape((1,) * (part.ndim - 2) + index.shape), -1)
        parts.append(part.reshape(*part.shape[:-2], -1))
    return jnp.concatenate([parts[0] * scale, *parts[1:]], axis=-1)
