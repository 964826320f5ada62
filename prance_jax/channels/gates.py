"""Gates on the channels that can be removed, and which of them to close.

Consistent dynamic channel pruning (CDCP; CAIT, Wang et al. 2023, arXiv 2309.15755, section 3.3). No code is public; what
its abstract says is: channels of attention are pruned uniformly, consistently over heads and within attention, and
may come back. The rest is a reconstruction: a gate for each channel of a head's queries and keys together (their
product contracts it), of its values and the projection's rows together, and of hidden units; closed by a Taylor
criterion, chosen anew while training goes on.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from prance_jax.complexity import macs
from prance_jax.models.reduced import Reduction
from prance_jax.spec import Channels, ModelSpec
from prance_jax.tokens.tokenset import descending

Params = Any


class Gates(NamedTuple):
    """float32, a number for each channel: qk, vo [L, heads, head_dim]; hidden [L, units]. As gates 1 is open, 0 closed."""

    qk: jax.Array
    vo: jax.Array
    hidden: jax.Array


def all_open(spec: ModelSpec) -> Gates:
    space = spec.space
    heads, hidden = (space.depth, space.heads, space.head_dim), (space.depth, space.most_hidden)
    # An array each: a training step gives its state away, and nothing can be given away twice.
    return Gates(jnp.ones(heads), jnp.ones(heads), jnp.ones(hidden))


def gated(params: Params, gates: Gates) -> Params:
    """The parameters of a `ViT` with what is behind closed gates at zero: its output is that of the pruned network.

    Weights behind a closed gate receive the gradient that they would have as zeros (straight-through), so they go on
    learning and their gate may open again; the gradient of a gate is that of the loss when it moves.
    """
    result = dict(params)
    for layer in range(gates.qk.shape[0]):
        block = dict(params[f"block_{layer}"])
        parts = jnp.stack([gates.qk[layer], gates.qk[layer], gates.vo[layer]]).reshape(-1)
        stored = block["fc1"]["bias"].shape[0]
        hidden = jnp.pad(gates.hidden[layer], (0, stored - gates.hidden.shape[1]), constant_values=1.0)
        block["qkv"] = {name: _through(weights, parts) for name, weights in block["qkv"].items()}
        block["fc1"] = {name: _through(weights, hidden) for name, weights in block["fc1"].items()}
        result[f"block_{layer}"] = block
    return result


def _through(weights: jax.Array, gate: jax.Array) -> jax.Array:
    closed = jax.lax.stop_gradient(1.0 - gate)
    return weights * gate + (weights - jax.lax.stop_gradient(weights)) * closed


def choose(scores: Gates, keep: jax.Array | float, multiple: tuple[int, int] = (1, 1)) -> Gates:
    """Opens the most important share `keep` of the gates of each kind, over all layers.

    Every head of a layer keeps as many: the number comes from the scores sorted within each head, averaged over heads,
    against one threshold for all layers; it is rounded to `multiple` (of a head's channels; of hidden units), at
    least one. Which ones may differ from head to head.
    """

    def kind(score: jax.Array, multiple: int) -> jax.Array:
        layers, heads, channels = score.shape
        profile = jnp.sort(score, axis=2)[:, :, ::-1].mean(axis=1)
        number = jnp.clip(jnp.round(keep * profile.size).astype(jnp.int32), 1, profile.size)
        threshold = jnp.sort(profile.reshape(-1))[::-1][number - 1]
        count = jnp.sum(profile >= threshold, axis=1)
        count = jnp.clip(jnp.round(count / multiple) * multiple, multiple, channels)
        ranks = descending(score.reshape(layers * heads, channels)).reshape(score.shape)
        return (ranks < count[:, None, None]).astype(jnp.float32)

    return Gates(
        kind(scores.qk, multiple[0]),
        kind(scores.vo, multiple[0]),
        kind(scores.hidden[:, None], multiple[1])[:, 0],
    )


def channels_left(gates: Gates) -> Channels:
    """What is open, from concrete gates; all heads of a layer have as many."""
    count = lambda gate: tuple(int(number) for number in gate.sum(axis=-1).reshape(gate.shape[0], -1)[:, 0])
    return Channels(count(gates.qk), count(gates.vo), count(gates.hidden))


def keep_for(spec: ModelSpec, share: float, reduction: Reduction | None = None) -> float:
    """The share of channels at which the pruned network, tokens reduced or not, costs `share` of the full one's
    multiply-accumulates, if all layers keep as many."""
    full = macs(spec, spec.largest).total
    counts = None if reduction is None else reduction.counts(spec)
    space, lowest, highest = spec.space, 0.0, 1.0

    def cost(keep: float) -> float:
        # Linear in the numbers, so fractions of channels do no harm here.
        heads = (keep * space.head_dim,) * space.depth
        left = Channels(heads, heads, (keep * space.most_hidden,) * space.depth)
        pruned = dataclasses.replace(spec, channels_left=left)
        return macs(pruned, pruned.largest, counts=counts).total / full

    for _ in range(40):
        middle = (lowest + highest) / 2
        lowest, highest = (middle, highest) if cost(middle) < share else (lowest, middle)
    return highest
