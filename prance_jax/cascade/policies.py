"""Ways to decide at the exits of a cascade inside the network, as pure functions of arrays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from prance_jax.cascade.forward import DecideAtExit
from prance_jax.cascade.observation import observe
from prance_jax.selector.cost_weight import sample_cost_weights
from prance_jax.selector.rl.ppo import PPO
from prance_jax.spec.cascade import Cascade


@dataclass(frozen=True)
class TrainingPolicy:
    """Decisions for stage three: a selector at random cost weights, and random steps for a share of the images.

    Where it stops, training goes on by a random step (see `training.stages.cascade`). So an image that it always stops
    is routed at random.

    Attributes:
      cascade: the tree.
      ppo: gives the actor; None routes all images at random.
      cost_weights: (lowest, highest) cost weight.
      explore: share of the images that are routed at random.
    """

    cascade: Cascade
    ppo: PPO | None = None
    cost_weights: tuple[float, float] = (0.0, 1.0)
    explore: float = 0.0

    def __call__(self, policy_params: Any, key: jax.Array) -> DecideAtExit:
        """Returns the decisions of a batch.

        Args:
          policy_params: parameters of the selector; not used without one.
          key: samples cost weights and the images that are routed at random.
        """
        mask = jnp.asarray(self.cascade.next_nodes >= 0)

        def decide(node: jax.Array, features: jax.Array) -> jax.Array:
            if self.ppo is None:
                return jnp.zeros_like(node)
            # One key for all exits: an image keeps its cost weight.
            weight_key, explore_key = jax.random.split(key)
            cost_weight = sample_cost_weights(weight_key, self.cost_weights, node.shape[0])
            observation = observe(self.cascade, node, features, cost_weight)
            action = self.ppo.act(policy_params, observation, mask[node])[:, 0]
            explores = jax.random.uniform(explore_key, node.shape) < self.explore
            return jnp.where(explores, 0, action)

        return decide


@dataclass(frozen=True)
class SelectorDecisions:
    """Decisions of a trained selector at one cost weight.

    Attributes:
      cascade: the tree.
      ppo: gives the actor.
    """

    cascade: Cascade
    ppo: PPO

    def __call__(self, policy_params: Any, cost_weight: jax.Array) -> DecideAtExit:
        """Returns the decisions.

        Args:
          policy_params: parameters of the selector.
          cost_weight: float32, scalar or [B].
        """
        mask = jnp.asarray(self.cascade.next_nodes >= 0)

        def decide(node: jax.Array, features: jax.Array) -> jax.Array:
            observation = observe(self.cascade, node, features, cost_weight)
            return self.ppo.act(policy_params, observation, mask[node])[:, 0]

        return decide
