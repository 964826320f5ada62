"""Ways to decide, as pure functions of arrays: by a trained selector, at random, or by a fixed structure.

A `Rule` has no arrays of its own: what it decides by is passed in (`variables`), so that one compiled program serves
every seed and every checkpoint.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from prance_jax.models.forward import Decide
from prance_jax.models.vit import GroupState
from prance_jax.selector.actions import ActionSpace
from prance_jax.selector.cost_weight import sample_cost_weights
from prance_jax.selector.observation import ObservationEncoder
from prance_jax.selector.rl.ppo import PPO
from prance_jax.selector.rl.types import PolicyParams
from prance_jax.spec.macs import macs
from prance_jax.spec.model_spec import ModelSpec
from prance_jax.spec.structure import GroupChoice, Structure


class DecisionPolicy(Protocol):
    """How groups are decided. Hashable, so that it can select a compiled program."""

    first_choice: GroupChoice

    def decide(self, policy_params: Any, key: jax.Array) -> Decide:
        """A function (group, Midway) -> GroupChoice, for a batch."""


class PolicyWithCost(NamedTuple):
    """A policy that was trained for every budget, and what compute costs now: scalar, or [B] for a price per image."""

    policy_params: PolicyParams
    cost_weight: jax.Array


@dataclass(frozen=True)
class SelectorPolicy:
    """The trained policy at its mode. variables: the `Policy` of the PPO state, or `Priced`."""

    first_choice: GroupChoice
    actions: ActionSpace
    encoder: ObservationEncoder
    ppo: PPO

    def decide(self, policy_params: Any, key: jax.Array) -> Decide:
        policy_params, cost_weight = (
            policy_params if isinstance(policy_params, PolicyWithCost) else (policy_params, None)
        )

        def choose(group: int, state: GroupState) -> GroupChoice:
            return self.actions.decode(
                self.ppo.act(policy_params, self.encoder(state, group, cost_weight)), group
            )

        return choose


@dataclass(frozen=True)
class RandomCostPolicy:
    """A selector of every budget, at a price drawn for each image: for fine-tuning a network that is to serve them all.

    prices: (lowest, highest), see `selector.price`. variables: the `Policy`.
    """

    policy: DecisionPolicy
    cost_weights: tuple[float, float]

    @property
    def first_choice(self) -> GroupChoice:
        return self.policy.first_choice

    def decide(self, policy_params: Any, key: jax.Array) -> Decide:
        def choose(group: int, state: GroupState) -> GroupChoice:
            # One key for all groups: an image keeps its price.
            batch = state.tokens.features.shape[0]
            sees_cost_weight = PolicyWithCost(
                policy_params, sample_cost_weights(key, self.cost_weights, batch)
            )
            return self.policy.decide(sees_cost_weight, key)(group, state)

        return choose


@dataclass(frozen=True)
class RandomPolicy:
    """Every component drawn independently; variables: the tilt (scalar), 0 for uniform.

    Choice i of n has probability proportional to exp(tilt x i / (n - 1)): of all random policies with a given mean
    of the indices the one of largest entropy, so it can be set to any mean MACs without becoming a rule of thumb.
    """

    first_choice: GroupChoice
    actions: ActionSpace

    def decide(self, policy_params: Any, key: jax.Array) -> Decide:
        def choose(group: int, state: GroupState) -> GroupChoice:
            batch = state.tokens.features.shape[0]
            return self.actions.decode(self.draw(policy_params, jax.random.fold_in(key, group), batch), group)

        return choose

    def draw(self, size_bias: jax.Array, key: jax.Array, batch: int) -> jax.Array:
        """int32 [batch, components] of the lattice."""
        keys = jax.random.split(key, self.actions.components)
        columns = [
            jax.random.categorical(own, size_bias * jnp.linspace(0.0, 1.0, size), shape=(batch,))
            for own, size in zip(keys, self.actions.sizes)
        ]
        return jnp.stack(columns, axis=1)

    def structure(self, size_bias: jax.Array, key: jax.Array, batch: int) -> Structure:
        """A per-image random structure, without running the network."""
        groups = range(1, self.actions.space.groups)
        drawn = (
            self.actions.decode(self.draw(size_bias, jax.random.fold_in(key, g), batch), g) for g in groups
        )
        return Structure((self.first_choice, *drawn))

    def size_bias_for(
        self, spec: ModelSpec, target: float, decision_cost: int = 0, samples: int = 4096
    ) -> float:
        """The tilt at which mean MACs are `target` (a share of the full network), to sampling error, by bisection.

        Where no tilt reaches the target the nearest one is returned.
        """
        full = float(macs(spec, spec.largest).total)

        @jax.jit
        def share(size_bias):
            return (
                jnp.mean(
                    macs(spec, self.structure(size_bias, jax.random.key(0), samples), decision_cost).total
                )
                / full
            )

        low, high = -30.0, 30.0
        for _ in range(30):
            middle = (low + high) / 2
            low, high = (middle, high) if share(middle) < target else (low, middle)
        return (low + high) / 2


@dataclass(frozen=True)
class StaticPolicy:
    """One static structure for every image: compact execution. variables: ignored."""

    structure: Structure

    @property
    def first_choice(self) -> GroupChoice:
        return self.structure.groups[0]

    def decide(self, policy_params: Any, key: jax.Array) -> Decide:
        return lambda group, state: self.structure.groups[group]


@dataclass(frozen=True)
class GivenPolicy:
    """Structures passed in as arrays (masked execution). variables: a `Structure` of scalars or [B] arrays."""

    first_choice: GroupChoice

    def decide(self, policy_params: Any, key: jax.Array) -> Decide:
        return lambda group, state: policy_params.groups[group]
