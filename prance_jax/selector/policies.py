"""Ways to decide, as pure functions of arrays: a trained selector, at random, or a fixed structure.

A `DecisionPolicy` holds no arrays. Its parameters are passed in (`policy_params`), so one compiled
program serves every seed and every checkpoint.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from prance_jax.models.forward import Decide, fixed_decisions
from prance_jax.models.outputs import GroupState
from prance_jax.selector.actions import ActionSpace
from prance_jax.selector.cost_weight import sample_cost_weights
from prance_jax.selector.observation import ObservationEncoder
from prance_jax.selector.rl.ppo import PPO
from prance_jax.selector.rl.types import PolicyParams
from prance_jax.spec.macs import macs
from prance_jax.spec.model_spec import ModelSpec
from prance_jax.spec.structure import GroupChoice, Structure


class DecisionPolicy(Protocol):
    """How groups are decided. Hashable, so it can be static under `jit`.

    Attributes:
      first_choice: choice of group 0, the same for every image.
    """

    first_choice: GroupChoice

    def decide(self, policy_params: Any, key: jax.Array) -> Decide:
        """Returns the function that takes the decisions of a batch.

        Args:
          policy_params: pytree of arrays; its form depends on the policy.
          key: random key of the batch.

        Returns:
          (group from 1, GroupState) -> GroupChoice.
        """


class PolicyWithCost(NamedTuple):
    """A policy that was trained for every budget, with the cost weight to use now.

    Attributes:
      policy_params: parameters of the trained policy.
      cost_weight: float32, scalar or [B] for one per image.
    """

    policy_params: PolicyParams
    cost_weight: jax.Array


@dataclass(frozen=True)
class SelectorPolicy:
    """The trained selector, at the mode of its distribution.

    Attributes:
      first_choice: choice of group 0.
      actions: meaning of the actions.
      encoder: builds the observations.
      ppo: the algorithm; gives actor and distribution.
    """

    first_choice: GroupChoice
    actions: ActionSpace
    encoder: ObservationEncoder
    ppo: PPO

    def decide(self, policy_params: Any, key: jax.Array) -> Decide:
        """Returns the decisions of the selector.

        Args:
          policy_params: `PolicyParams`, or `PolicyWithCost` if the selector was trained for every
            budget.
          key: not used.
        """
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
    """A selector of every budget with a cost weight sampled per image.

    For fine-tuning a network that is to serve every budget.

    Attributes:
      policy: the selector.
      cost_weights: (lowest, highest), see `prance_jax.selector.cost_weight`.
    """

    policy: DecisionPolicy
    cost_weights: tuple[float, float]

    @property
    def first_choice(self) -> GroupChoice:
        """Choice of group 0."""
        return self.policy.first_choice

    def decide(self, policy_params: Any, key: jax.Array) -> Decide:
        """Returns the decisions of the selector at random cost weights.

        Args:
          policy_params: `PolicyParams` of the selector.
          key: samples the cost weights.
        """

        def choose(group: int, state: GroupState) -> GroupChoice:
            # One key for all groups: an image keeps its cost weight.
            batch = state.tokens.features.shape[0]
            conditioned_params = PolicyWithCost(
                policy_params, sample_cost_weights(key, self.cost_weights, batch)
            )
            return self.policy.decide(conditioned_params, key)(group, state)

        return choose


@dataclass(frozen=True)
class RandomPolicy:
    """Samples every component of the action independently; the parameter is a scalar, `size_bias`.

    Choice i of n has probability proportional to exp(size_bias x i / (n - 1)); 0 is uniform. Of all
    random policies with a given mean of the indices this has the largest entropy. So it can be set
    to any mean MACs and stays random.

    Attributes:
      first_choice: choice of group 0.
      actions: meaning of the actions; discrete.
    """

    first_choice: GroupChoice
    actions: ActionSpace

    def decide(self, policy_params: Any, key: jax.Array) -> Decide:
        """Returns random decisions.

        Args:
          policy_params: `size_bias`, float32 scalar.
          key: samples the actions.
        """

        def choose(group: int, state: GroupState) -> GroupChoice:
            batch = state.tokens.features.shape[0]
            return self.actions.decode(
                self.sample(policy_params, jax.random.fold_in(key, group), batch), group
            )

        return choose

    def sample(self, size_bias: jax.Array, key: jax.Array, batch: int) -> jax.Array:
        """Samples actions.

        Args:
          size_bias: float32 scalar; above 0 favours large choices.
          key: random key.
          batch: number of actions, B.

        Returns:
          int32 [B, components], indices.
        """
        keys = jax.random.split(key, self.actions.components)
        columns = [
            jax.random.categorical(
                column_key, size_bias * jnp.linspace(0.0, 1.0, size, dtype=jnp.float32), shape=(batch,)
            )
            for column_key, size in zip(keys, self.actions.nvec)
        ]
        return jnp.stack(columns, axis=1)

    def sample_structure(self, size_bias: jax.Array, key: jax.Array, batch: int) -> Structure:
        """Samples whole structures, without running the network.

        Args:
          size_bias: float32 scalar; above 0 favours large choices.
          key: random key.
          batch: number of structures, B.

        Returns:
          A structure with entries [B]; group 0 is static.
        """
        groups = range(1, self.actions.space.groups)
        choices = (
            self.actions.decode(self.sample(size_bias, jax.random.fold_in(key, group), batch), group)
            for group in groups
        )
        return Structure((self.first_choice, *choices))

    def size_bias_for(
        self, spec: ModelSpec, target: float, decision_cost: int = 0, samples: int = 4096
    ) -> float:
        """Finds the size bias at which mean MACs meet a target, by bisection.

        Args:
          spec: the network.
          target: mean MACs as a share of the dense network's.
          decision_cost: MACs of one decision.
          samples: random structures that the mean is taken over.

        Returns:
          The size bias, to sampling error; the nearest one between -30 and 30 if the target cannot
          be met.
        """
        full = float(macs(spec, spec.largest).total)

        @jax.jit
        def share(size_bias):
            return (
                jnp.mean(
                    macs(
                        spec, self.sample_structure(size_bias, jax.random.key(0), samples), decision_cost
                    ).total
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
    """One static structure for every image (compact execution).

    Attributes:
      structure: the structure; every entry is a Python number.
    """

    structure: Structure

    @property
    def first_choice(self) -> GroupChoice:
        """Choice of group 0."""
        return self.structure.groups[0]

    def decide(self, policy_params: Any, key: jax.Array) -> Decide:
        """Returns the choices of the structure.

        Args:
          policy_params: not used.
          key: not used.
        """
        return fixed_decisions(self.structure)


@dataclass(frozen=True)
class GivenPolicy:
    """Structures passed in as arrays (masked execution).

    Attributes:
      first_choice: choice of group 0.
    """

    first_choice: GroupChoice

    def decide(self, policy_params: Any, key: jax.Array) -> Decide:
        """Returns the choices of the structure that is passed in.

        Args:
          policy_params: a `Structure` whose entries are scalars or [B].
          key: not used.
        """
        return fixed_decisions(policy_params)
