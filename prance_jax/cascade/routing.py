"""Ways to route images through a cascade by their table: for baselines, bounds and calibration.

- `confidence_choices`, `confidence_nodes`: the largest probability of an answer against a threshold (DVT, CF-ViT).
- `selector_actions`: the action that a trained selector takes at every node.
- `table.optimal_actions`: the same of the label oracle.
- `cost_weight_for`: the cost weight at which such actions meet a budget.
"""

from __future__ import annotations

import functools
import itertools
from typing import Any, Callable, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from prance_jax.cascade.observation import LARGEST_PROBABILITY, observe
from prance_jax.cascade.table import CascadeTable, stop_nodes
from prance_jax.selector.cost_weight import cost_weight_from_asinh, cost_weight_to_asinh, reward_scale
from prance_jax.selector.rl.ppo import PPO
from prance_jax.spec.cascade import START, Cascade


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


class ConfidenceChoice(NamedTuple):
    """A rule and what it gives on held-out images.

    Attributes:
      rule: path and threshold.
      accuracy: share of the images that are right.
      cost: mean share of the dense MACs.
    """

    rule: ConfidenceRule
    accuracy: float
    cost: float


def confidence_choices(
    cascade: Cascade, table: CascadeTable, num_thresholds: int = 60
) -> list[ConfidenceChoice]:
    """Lists all paths, all choices of their exits and many thresholds, with their accuracy and cost.

    Args:
      cascade: the tree.
      table: held-out images.
      num_thresholds: quantiles of the confidence that are tried on each path.
    """
    correct, cost = np.asarray(table.correct), np.asarray(table.cost, np.float64)
    confidence = np.asarray(table.features)[:, :, LARGEST_PROBABILITY]
    quality, choices = correct.astype(np.float64), []
    for node in range(1, cascade.num_nodes):
        path = cascade.path(node)
        for used in itertools.product((False, True), repeat=len(path) - 1):
            exits = (*(n for n, is_used in zip(path, used) if is_used), node)
            confidences = confidence[:, list(exits[:-1])]
            thresholds = (
                np.quantile(confidences, np.linspace(0, 1, num_thresholds)) if confidences.size else [2.0]
            )
            for threshold in np.unique(thresholds):
                rule = ConfidenceRule(path, exits, float(threshold))
                stops = confidence_nodes(table, rule)
                accuracy = np.take_along_axis(quality, stops[:, None], axis=1).mean()
                choices.append(ConfidenceChoice(rule, float(accuracy), float(cost[stops].mean())))
    return choices


def best_confidence_rule(choices: list[ConfidenceChoice], budget: float) -> ConfidenceRule:
    """Returns the rule that is most accurate at a mean cost of at most `budget`; if none is so cheap, the cheapest.

    Args:
      choices: from `confidence_choices`.
      budget: mean share of the dense MACs.
    """
    fitting = [choice for choice in choices if choice.cost <= budget]
    if not fitting:
        return min(choices, key=lambda choice: choice.cost).rule
    return max(fitting, key=lambda choice: (choice.accuracy, -choice.cost)).rule


def confidence_rule_at(
    choices: list[ConfidenceChoice], budget: float, tolerance: float = 0.02
) -> ConfidenceRule | None:
    """Returns the most accurate rule that spends a budget; None if no rule comes near it.

    Args:
      choices: from `confidence_choices`.
      budget: mean share of the dense MACs.
      tolerance: how far the mean cost may be from the budget, as a share of the budget.
    """
    near = [choice for choice in choices if abs(choice.cost - budget) <= tolerance * budget]
    return max(near, key=lambda choice: choice.accuracy).rule if near else None


class Demonstrations(NamedTuple):
    """Decisions to imitate, for behaviour cloning.

    Attributes:
      observation: float32 [N, D].
      action: int32 [N, 1].
      mask: bool [N, actions], which actions there are.
      weight: float32 [N], 1 for decisions that an image comes to.
    """

    observation: jax.Array
    action: jax.Array
    mask: jax.Array
    weight: jax.Array


def confidence_demonstrations(
    cascade: Cascade, table: CascadeTable, choices: list[ConfidenceChoice], cost_weights: np.ndarray
) -> Demonstrations:
    """Returns the decisions of the best confidence rule at several cost weights.

    Args:
      cascade: the tree.
      table: the images that decide.
      choices: from `confidence_choices`.
      cost_weights: float [W]; at each one the rule with the best accuracy - cost_weight x cost.
    """
    parts, features = [], jnp.asarray(table.features)
    for cost_weight in cost_weights:
        rule = max(choices, key=lambda choice: choice.accuracy - cost_weight * choice.cost).rule
        stops = confidence_nodes(table, rule)
        going = np.ones(len(stops), bool)
        for node, following in zip((START, *rule.path), (*rule.path, None)):
            children, nodes = cascade.children[node], jnp.full(len(stops), node, jnp.int32)
            if not children:
                break
            action = np.where(stops == node, 0, 0 if following is None else children.index(following) + 1)
            parts.append(
                Demonstrations(
                    observe(cascade, nodes, features[:, node], jnp.float32(cost_weight)),
                    jnp.asarray(action, jnp.int32)[:, None],
                    jnp.asarray(cascade.next_nodes >= 0)[nodes],
                    jnp.asarray(going, jnp.float32),
                )
            )
            going &= action != 0
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)


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


@functools.lru_cache(maxsize=None)
def _selector_actions(cascade: Cascade, ppo: PPO) -> Callable:
    mask = jnp.asarray(cascade.next_nodes >= 0)

    @jax.jit
    def run(policy_params, features, cost_weight):
        columns = []
        for node in range(cascade.num_nodes):
            nodes = jnp.full(features.shape[0], node, jnp.int32)
            observation = observe(cascade, nodes, features[:, node], cost_weight)
            columns.append(ppo.act(policy_params, observation, mask[nodes])[:, 0])
        return jnp.stack(columns, axis=1)

    return run


def mean_utility(
    cascade: Cascade,
    ppo: PPO,
    policy_params: Any,
    table: CascadeTable,
    cost_weights: tuple[float, float],
    num_points: int = 17,
) -> float:
    """Returns the utility of a selector, averaged over images and cost weights as in training.

    Args:
      cascade: the tree.
      ppo: gives the actor.
      policy_params: parameters of the selector.
      table: held-out images.
      cost_weights: (lowest, highest) cost weight.
      num_points: cost weights, evenly on the asinh scale.
    """
    low, high = map(cost_weight_to_asinh, cost_weights)
    utilities, rows = [], np.arange(len(table.labels))
    for cost_weight in np.asarray(
        cost_weight_from_asinh(jnp.linspace(low, high, num_points, dtype=jnp.float32))
    ):
        actions = selector_actions(cascade, ppo, policy_params, table, float(cost_weight))
        node = np.asarray(stop_nodes(cascade, actions))
        utility = np.asarray(table.quality)[rows, node] - cost_weight * np.asarray(table.cost)[node]
        utilities.append(float(utility.mean() * reward_scale(cost_weight)))
    return float(np.mean(utilities))


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
        spent = float(route(table, stop_nodes(cascade, actions_at(weight))).cost.mean())
        low, high = (low, middle) if spent <= budget else (middle, high)
    return float(cost_weight_from_asinh(jnp.float32(high)))
