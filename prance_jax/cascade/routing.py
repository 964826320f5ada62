"""Ways to route images through a cascade by their table: for baselines, bounds and calibration.

All work on `actions`, int32 [N, nodes]: the action that an image would take at every node.

- `confidence_actions`: the largest probability of an answer against a threshold (DVT, CF-ViT).
- `selector_actions`: a trained selector.
- `table.optimal_actions`: the label oracle.
"""

from __future__ import annotations

import itertools
from typing import Any, Callable, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from prance_jax.cascade.observation import LARGEST_PROBABILITY, observe
from prance_jax.cascade.table import CascadeTable, follow
from prance_jax.selector.cost_weight import cost_weight_from_asinh, cost_weight_to_asinh
from prance_jax.selector.rl.ppo import PPO
from prance_jax.spec.cascade import Cascade


class Routed(NamedTuple):
    """Where images stopped, and what that gives.

    Attributes:
      node: int32 [N].
      correct: bool [N].
      cost: float32 [N], share of the dense MACs.
    """

    node: np.ndarray
    correct: np.ndarray
    cost: np.ndarray


class ConfidenceRule(NamedTuple):
    """A fixed path with a threshold: an image stops at an exit on the path where its confidence reaches it.

    Attributes:
      path: nodes of the path, in order.
      exits: nodes of the path at which an image may stop, the last one among them.
      threshold: confidence from which it stops.
    """

    path: tuple[int, ...]
    exits: tuple[int, ...]
    threshold: float


def route(table: CascadeTable, node: jax.Array) -> Routed:
    """Returns what images get that stop at given nodes.

    Args:
      table: the decision process.
      node: int32 [N].
    """
    node = np.asarray(node)
    rows = np.arange(len(node))
    return Routed(node, np.asarray(table.correct)[rows, node], np.asarray(table.cost)[node])


def confidence_nodes(table: CascadeTable, rule: ConfidenceRule) -> np.ndarray:
    """Returns where images stop under a confidence threshold, int32 [N].

    Args:
      table: the decision process.
      rule: path and threshold.
    """
    confidence = np.asarray(table.features)[:, :, LARGEST_PROBABILITY]
    node = np.full(len(confidence), rule.path[-1])
    for exit_node in reversed(rule.exits[:-1]):
        node = np.where(confidence[:, exit_node] >= rule.threshold, exit_node, node)
    return node


def best_confidence_rule(
    cascade: Cascade, table: CascadeTable, budget: float, num_thresholds: int = 60
) -> ConfidenceRule:
    """Finds the path, its exits and the threshold that are most accurate at a mean cost of at most `budget`.

    Args:
      cascade: the tree.
      table: held-out images.
      budget: mean share of the dense MACs.
      num_thresholds: quantiles of the confidence that are tried.

    Returns:
      The rule; if none is so cheap, the cheapest.
    """
    correct, cost = np.asarray(table.correct, np.float64), np.asarray(table.cost, np.float64)
    confidence = np.asarray(table.features)[:, :, LARGEST_PROBABILITY]
    best, best_key = None, None
    for node in range(1, cascade.num_nodes):
        path = cascade.path(node)
        for chosen in itertools.product((False, True), repeat=len(path) - 1):
            exits = (*(n for n, used in zip(path, chosen) if used), node)
            levels = confidence[:, list(exits[:-1])]
            thresholds = np.quantile(levels, np.linspace(0, 1, num_thresholds)) if len(exits) > 1 else [2.0]
            for threshold in np.unique(thresholds):
                stops = [*(confidence[:, n] >= threshold for n in exits[:-1]), np.ones(len(correct), bool)]
                going, accuracy, spent = np.ones(len(correct), bool), 0.0, 0.0
                for exit_node, stop in zip(exits, stops):
                    here = going & stop
                    accuracy += correct[here, exit_node].sum()
                    spent += here.sum() * cost[exit_node]
                    going &= ~stop
                accuracy, spent = accuracy / len(correct), spent / len(correct)
                key = (True, accuracy, -spent) if spent <= budget else (False, -spent, accuracy)
                if best_key is None or key > best_key:
                    best, best_key = ConfidenceRule(path, exits, float(threshold)), key
    return best


def selector_actions(
    cascade: Cascade, ppo: PPO, policy_params: Any, table: CascadeTable, cost_weight: float
) -> jax.Array:
    """Returns the action that a trained selector takes at every node, int32 [N, nodes].

    Args:
      cascade: the tree.
      ppo: gives the actor.
      policy_params: parameters of the selector.
      table: the decision process.
      cost_weight: float32 scalar.
    """
    return _selector_actions(cascade, ppo)(policy_params, table.features, jnp.float32(cost_weight))


def _selector_actions(cascade: Cascade, ppo: PPO) -> Callable:
    mask = jnp.asarray(cascade.next_nodes >= 0)

    @jax.jit
    def run(policy_params, features, cost_weight):
        columns = []
        for node in range(cascade.num_nodes):
            nodes = jnp.full(features.shape[0], node)
            observation = observe(cascade, nodes, features[:, node], cost_weight)
            columns.append(ppo.act(policy_params, observation, mask[nodes])[:, 0])
        return jnp.stack(columns, axis=1)

    return run


def cost_weight_for(
    cascade: Cascade,
    actions_at: Callable[[float], jax.Array],
    table: CascadeTable,
    budget: float,
    cost_weights: tuple[float, float],
    steps: int = 14,
) -> float:
    """Finds the cost weight at which mean cost meets a budget, by bisection on the asinh scale.

    Args:
      cascade: the tree.
      actions_at: cost weight -> actions int32 [N, nodes].
      table: held-out images.
      budget: mean share of the dense MACs.
      cost_weights: (lowest, highest) cost weight.
      steps: halvings.

    Returns:
      The smallest tried cost weight that spends at most `budget`; the highest if none does.
    """
    low, high = (float(cost_weight_to_asinh(weight)) for weight in cost_weights)
    for _ in range(steps):
        middle = (low + high) / 2
        weight = float(cost_weight_from_asinh(jnp.float32(middle)))
        spent = float(route(table, follow(cascade, actions_at(weight))).cost.mean())
        low, high = (low, middle) if spent <= budget else (middle, high)
    return float(cost_weight_from_asinh(jnp.float32(high)))
