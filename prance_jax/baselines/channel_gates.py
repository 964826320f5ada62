"""Gates on the channels that can be removed, and the choice of the gates to close.

Consistent dynamic channel pruning (CDCP): channels of attention are pruned uniformly, consistently
over heads and within attention, and may come back. That is what the abstract states. There is no
public code; the rest is a reconstruction:

- One gate for each channel of a head's queries and keys together, since their product sums over it.
- One gate for each channel of a head's values, together with the rows of the output projection that
  read it.
- One gate for each hidden unit of an MLP.
- A Taylor criterion decides which gates close. It is applied again and again during training.

Reference: CAIT, Wang et al. 2023, arXiv 2309.15755, section 3.3.
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
from prance_jax.tokens.token_set import descending_rank

Params = Any


class Gates(NamedTuple):
    """One number for each channel gate: 1 open and 0 closed, or its importance.

    Attributes:
      qk: float32 [layers, heads, head_dim], channels of queries and keys.
      vo: float32 [layers, heads, head_dim], channels of values and of the rows of the output
        projection.
      hidden: float32 [layers, mlp_dim], hidden units.
    """

    qk: jax.Array
    vo: jax.Array
    hidden: jax.Array


def all_gates_open(spec: ModelSpec) -> Gates:
    """Returns open gates for every channel of a network."""
    space = spec.space
    heads, hidden = (space.depth, space.heads, space.head_dim), (space.depth, space.max_mlp_dim)
    # Separate arrays: a training step donates its state, and an array can be donated only once.
    return Gates(jnp.ones(heads, jnp.float32), jnp.ones(heads, jnp.float32), jnp.ones(hidden, jnp.float32))


def apply_gates(params: Params, gates: Gates) -> Params:
    """Returns parameters in which channels behind closed gates are zero.

    The network then has the output of the pruned network. Weights behind a closed gate receive the
    gradient that they would have at zero (straight-through). So they go on learning, and their gate
    may open again. The gradient of a gate is the derivative of the loss by the gate.

    Args:
      params: parameters of a `ViT`.
      gates: 1 or 0 for each channel.
    """
    result = dict(params)
    for layer in range(gates.qk.shape[0]):
        block = dict(params[f"block_{layer}"])
        qkv = jnp.stack([gates.qk[layer], gates.qk[layer], gates.vo[layer]]).reshape(-1)
        stored = block["fc1"]["bias"].shape[0]
        hidden = jnp.pad(gates.hidden[layer], (0, stored - gates.hidden.shape[1]), constant_values=1.0)
        block["qkv"] = {name: _gate_weights(weights, qkv) for name, weights in block["qkv"].items()}
        block["fc1"] = {name: _gate_weights(weights, hidden) for name, weights in block["fc1"].items()}
        result[f"block_{layer}"] = block
    return result


def _gate_weights(weights: jax.Array, gate: jax.Array) -> jax.Array:
    """Weights times gates; the second term is zero and gives closed weights a gradient."""
    is_closed = jax.lax.stop_gradient(1.0 - gate)
    return weights * gate + (weights - jax.lax.stop_gradient(weights)) * is_closed


def choose_gates(
    scores: Gates, keep: jax.Array | float, costs: Gates, multiple: tuple[int, int] = (1, 1)
) -> Gates:
    """Opens the most important gates over all layers, at a given share of the MACs of all gates.

    Each kind of gate opens in the same share: of 256 shares the one at which the rounded numbers
    cost nearest to `keep`. All heads of a layer open the same number, at least one. The number
    comes from one threshold for all layers, applied to the scores that are sorted within each head
    and averaged over the heads. Which channels are open may differ from head to head.

    Args:
      scores: importance of each gate.
      keep: share of the MACs of all gates, in [0, 1].
      costs: MACs of one gate, see `gate_costs`.
      multiple: numbers are rounded to multiples of these: channels of a head, hidden units of a
        layer.

    Returns:
      1 for open gates, 0 for closed ones.
    """
    by_head = scores._replace(hidden=scores.hidden[:, None])
    multiples = Gates(multiple[0], multiple[0], multiple[1])
    profiles = Gates(*(jnp.sort(score, axis=2)[:, :, ::-1].mean(axis=1) for score in by_head))

    def num_open_at(share: jax.Array) -> Gates:
        """Number of open gates in a head, int32 [layers] of each kind."""

        def of_kind(profile: jax.Array, multiple: int) -> jax.Array:
            number = jnp.clip(jnp.round(share * profile.size).astype(jnp.int32), 1, profile.size)
            threshold = jnp.sort(profile.reshape(-1))[::-1][number - 1]
            count = jnp.round(jnp.sum(profile >= threshold, axis=1, dtype=jnp.float32) / multiple) * multiple
            return jnp.clip(count, multiple, profile.shape[1]).astype(jnp.int32)

        return Gates(*(of_kind(profile, multiple) for profile, multiple in zip(profiles, multiples)))

    candidates = jax.vmap(num_open_at)(jnp.linspace(0.0, 1.0, 256, dtype=jnp.float32))
    relative_costs = [jnp.asarray(cost / _all_gates_macs(costs, scores), jnp.float32) for cost in costs]
    candidate_costs = sum(counts @ cost for counts, cost in zip(candidates, relative_costs))
    nearest = jnp.argmin(jnp.abs(candidate_costs - keep))
    num_open = Gates(*(counts[nearest] for counts in candidates))

    def open_best(score: jax.Array, count: jax.Array) -> jax.Array:
        layers, heads, channels = score.shape
        ranks = descending_rank(score.reshape(layers * heads, channels)).reshape(score.shape)
        return (ranks < count[:, None, None]).astype(jnp.float32)

    gates = Gates(*(open_best(score, count) for score, count in zip(by_head, num_open)))
    return gates._replace(hidden=gates.hidden[:, 0])


def open_channels(gates: Gates) -> ChannelCounts:
    """Counts the open gates of each layer, the same number in all its heads; not under `jit`."""
    count = lambda gate: tuple(int(number) for number in gate.sum(axis=-1).reshape(gate.shape[0], -1)[:, 0])
    return ChannelCounts(count(gates.qk), count(gates.vo), count(gates.hidden))


def gate_costs(spec: ModelSpec, reduction: ScheduledReduction | None = None) -> Gates:
    """Counts the multiply-accumulates of one gate in each layer.

    Under a token reduction later layers have fewer tokens, so their gates cost less.

    Args:
      spec: the network.
      reduction: token reduction; None for none.

    Returns:
      int64 [layers] of each kind. A channel of a head is counted with those at its index in the
      other heads.
    """
    space = spec.space
    ones = [[1] * space.depth for _ in Gates._fields]

    def cost(kind: int, layer: int) -> int:
        with_gate = [list(counts) for counts in ones]
        with_gate[kind][layer] += 1
        return _network_macs(spec, with_gate, reduction) - _network_macs(spec, ones, reduction)

    return Gates(*(np.array([cost(kind, layer) for layer in range(space.depth)]) for kind in range(3)))


def gate_share_at_macs(spec: ModelSpec, share: float, reduction: ScheduledReduction | None = None) -> float:
    """Computes the share of all gates' MACs that gives the pruned network a share of MACs.

    Args:
      spec: the network.
      share: MACs of the pruned network under `reduction` over those of the dense one without it.
      reduction: token reduction; None for none.

    Returns:
      A share in [0, 1], `keep` of `choose_gates`.
    """
    space = spec.space
    all_channels = [[count] * space.depth for count in (space.head_dim, space.head_dim, space.max_mlp_dim)]
    gates = _all_gates_macs(gate_costs(spec, reduction), all_gates_open(spec))
    fixed = _network_macs(spec, all_channels, reduction) - gates
    # Costs are linear in the numbers of channels.
    return float(np.clip((share * macs(spec, spec.largest).total - fixed) / gates, 0.0, 1.0))


def _all_gates_macs(costs: Gates, gates: Gates) -> int:
    """MACs of all gates; of `gates` only the shapes matter."""
    return sum(int(cost.sum()) * gate.shape[-1] for cost, gate in zip(costs, gates))


def _network_macs(spec: ModelSpec, channels: list[list[int]], reduction: ScheduledReduction | None) -> int:
    """MACs of the network with these channels (of qk, vo, hidden) in each layer."""
    pruned = dataclasses.replace(spec, channels_left=ChannelCounts(*(tuple(counts) for counts in channels)))
    if reduction is None:
        return macs(pruned, pruned.largest).total
    return scheduled_macs(pruned, pruned.largest, reduction).total
