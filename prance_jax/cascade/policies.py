"""Ways to decide at the exits of a cascade inside the network, as pure functions of arrays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prance_jax.cascade.forward import DecideAtExit
from prance_jax.cascade.observation import LARGEST_PROBABILITY, observe
from prance_jax.cascade.routing import ConfidenceRule
from prance_jax.selector.cost_weight import sample_cost_weights
from prance_jax.selector.rl.ppo import PPO
from prance_jax.spec.cascade import START, Cascade


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
            explores = jax.random.uniform(explore_key, node.shape, dtype=jnp.float32) < self.explore
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


def confidence_decisions(cascade: Cascade, rule: ConfidenceRule) -> DecideAtExit:
    """Returns the decisions of a confidence threshold: those that `routing.confidence_nodes` takes in a table.

    Args:
      cascade: the tree.
      rule: path and threshold; the threshold may be traced.
    """
    action, is_exit = np.zeros(cascade.num_nodes, np.int32), np.zeros(cascade.num_nodes, bool)
    for node, following in zip((START, *rule.path), rule.path):
        action[node] = cascade.children[node].index(following) + 1
    is_exit[list(rule.exits)] = True

    def decide(node: jax.Array, features: jax.Array) -> jax.Array:
        stops = jnp.asarray(is_exit)[node] & (features[:, LARGEST_PROBABILITY] >= rule.threshold)
        return jnp.where(stops, 0, jnp.asarray(action)[node])

    return decide
