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
import numpy as np

from prance_jax.models.reduction import ScheduledReduction, scheduled_macs
from prance_jax.spec.macs import macs
from prance_jax.spec.model_spec import ChannelCounts, ModelSpec
from prance_jax.tokens.token_set import descending

Params = Any


class Gates(NamedTuple):
    """float32, a number for each channel: qk, vo [L, heads, head_dim]; hidden [L, units]. As gates 1 is open, 0 closed."""

    qk: jax.Array
    vo: jax.Array
    hidden: jax.Array


def all_gates_open(spec: ModelSpec) -> Gates:
    space = spec.space
    heads, hidden = (space.depth, space.heads, space.head_dim), (space.depth, space.max_mlp_dim)
    # An array each: a training step gives its state away, and nothing can be given away twice.
    return Gates(jnp.ones(heads), jnp.ones(heads), jnp.ones(hidden))


def apply_gates(params: Params, gates: Gates) -> Params:
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


def choose_gates(
    scores: Gates, keep: jax.Array | float, costs: Gates, multiple: tuple[int, int] = (1, 1)
) -> Gates:
    """Opens the most important gates, over all layers, so many that they cost `keep` of what all gates cost.

    costs: of `gate_costs`. The same share of the gates of each kind opens: of 256 shares the one whose numbers, rounded,
    cost nearest to `keep`. Every head of a layer keeps as many: the number comes from the scores sorted within each head,
    averaged over heads, against one threshold for all layers; it is rounded to `multiple` (of a head's channels; of hidden
    units), at least one. Which ones may differ from head to head.
    """
    by_head = scores._replace(hidden=scores.hidden[:, None])
    rounding = Gates(multiple[0], multiple[0], multiple[1])
    profiles = Gates(*(jnp.sort(score, axis=2)[:, :, ::-1].mean(axis=1) for score in by_head))

    def numbers(share: jax.Array) -> Gates:
        """int32 [L] of each kind: the gates of a head that open."""

        def kind(profile: jax.Array, multiple: int) -> jax.Array:
            number = jnp.clip(jnp.round(share * profile.size).astype(jnp.int32), 1, profile.size)
            threshold = jnp.sort(profile.reshape(-1))[::-1][number - 1]
            count = jnp.round(jnp.sum(profile >= threshold, axis=1) / multiple) * multiple
            return jnp.clip(count, multiple, profile.shape[1]).astype(jnp.int32)

        return Gates(*(kind(profile, own) for profile, own in zip(profiles, rounding)))

    tried = jax.vmap(numbers)(jnp.linspace(0.0, 1.0, 256))
    relative = [jnp.asarray(own / _whole(costs, scores), jnp.float32) for own in costs]
    spent = sum(count @ cost for count, cost in zip(tried, relative))
    nearest = jnp.argmin(jnp.abs(spent - keep))
    found = Gates(*(count[nearest] for count in tried))

    def opened(score: jax.Array, count: jax.Array) -> jax.Array:
        layers, heads, channels = score.shape
        ranks = descending(score.reshape(layers * heads, channels)).reshape(score.shape)
        return (ranks < count[:, None, None]).astype(jnp.float32)

    gates = Gates(*(opened(score, count) for score, count in zip(by_head, found)))
    return gates._replace(hidden=gates.hidden[:, 0])


def channels_left(gates: Gates) -> ChannelCounts:
    """What is open, from concrete gates; all heads of a layer have as many."""
    count = lambda gate: tuple(int(number) for number in gate.sum(axis=-1).reshape(gate.shape[0], -1)[:, 0])
    return ChannelCounts(count(gates.qk), count(gates.vo), count(gates.hidden))


def gate_costs(spec: ModelSpec, reduction: ScheduledReduction | None = None) -> Gates:
    """Multiply-accumulates of a gate, int64 [L] of each kind, those of a head's channel being of all heads together; under a
    token reduction the later layers have fewer tokens, so their gates cost less."""
    space = spec.space
    ones = [[1] * space.depth for _ in Gates._fields]

    def cost(kind: int, layer: int) -> int:
        more = [list(own) for own in ones]
        more[kind][layer] += 1
        return _total(spec, more, reduction) - _total(spec, ones, reduction)

    return Gates(*(np.array([cost(kind, layer) for layer in range(space.depth)]) for kind in range(3)))


def macs_of_gates(spec: ModelSpec, share: float, reduction: ScheduledReduction | None = None) -> float:
    """The share of the gates' cost that is left, in 0 to 1, where the pruned network, tokens reduced or not, costs `share` of the
    full one's multiply-accumulates."""
    space = spec.space
    everything = [[own] * space.depth for own in (space.head_dim, space.head_dim, space.max_mlp_dim)]
    gates = _whole(gate_costs(spec, reduction), all_gates_open(spec))
    fixed = _total(spec, everything, reduction) - gates
    # Costs are linear in the numbers.
    return float(np.clip((share * macs(spec, spec.largest).total - fixed) / gates, 0.0, 1.0))


def _whole(costs: Gates, gates: Gates) -> int:
    """What all gates cost; of `gates` only the shapes matter."""
    return sum(int(own.sum()) * gate.shape[-1] for own, gate in zip(costs, gates))


def _total(spec: ModelSpec, tokens_after: list[list[int]], reduction: ScheduledReduction | None) -> int:
    pruned = dataclasses.replace(spec, channels_left=ChannelCounts(*(tuple(own) for own in tokens_after)))
    if reduction is None:
        return macs(pruned, pruned.largest).total
    return scheduled_macs(pruned, pruned.largest, reduction).total
