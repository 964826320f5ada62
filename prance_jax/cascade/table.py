"""The decision process of a cascade as a table: everything that can happen to an image, computed once.

The network is frozen and the tree of steps is finite. So for every image and every node the answer, its quality and its
features are known beforehand, and an episode is a few look-ups. The table also has the exact optimum for an agent that
knows the labels (`optimal_actions`), which no selector can reach: it is an upper bound.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, Callable, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from prance_jax.cascade.forward import forward_tree
from prance_jax.cascade.observation import observation_size, observe
from prance_jax.core.errors import UserError
from prance_jax.selector.cost_weight import reward_scale, sample_cost_weights
from prance_jax.spec.cascade import START, Cascade


class CascadeTable(NamedTuple):
    """What happens to N images at every node of a cascade.

    Attributes:
      features: float32 [N, nodes, features], see `exit_features`; zero at the start.
      predicted: int32 [N, nodes], predicted class; -1 at the start.
      quality: float32 [N, nodes], how good the answer is; 0 at the start.
      labels: int32 [N].
      cost: float32 [nodes], what an image costs that stops at a node, as a share of the dense MACs; decisions counted.
    """

    features: jax.Array
    predicted: jax.Array
    quality: jax.Array
    labels: jax.Array
    cost: jax.Array

    @property
    def correct(self) -> jax.Array:
        """Whether the predicted class is the label, bool [N, nodes]."""
        return self.predicted == self.labels[:, None]


def node_costs(cascade: Cascade, decision_cost: int = 0) -> np.ndarray:
    """Counts what an image costs that stops at each node, as a share of the dense MACs; float64 [nodes].

    Args:
      cascade: the tree.
      decision_cost: MACs of one decision. A node without children needs none.
    """
    decisions = np.array(
        [
            len(cascade.path(node)) + (1 if cascade.children[node] and node != START else 0)
            for node in range(cascade.num_nodes)
        ]
    )
    return (cascade.macs + decision_cost * decisions) / cascade.spec.dense_macs


@functools.lru_cache(maxsize=None)
def _compiled_tree(cascade: Cascade, quality: str) -> Callable:
    def run(params, images, labels):
        logits, features = forward_tree(cascade, params, images)
        predicted = logits.argmax(-1).astype(jnp.int32).at[:, START].set(-1)
        if quality == "correct":
            score = (predicted == labels[:, None]).astype(jnp.float32)
        else:
            score = jnp.take_along_axis(jax.nn.softmax(logits), labels[:, None, None], axis=-1)[..., 0]
        return features, predicted, score.at[:, START].set(0.0)

    return jax.jit(run)


def tabulate(
    cascade: Cascade,
    params: Any,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    quality: str = "correct",
    decision_cost: int = 0,
    batch: int = 250,
) -> CascadeTable:
    """Runs the whole tree once on every image.

    Args:
      cascade: the tree.
      params: parameters of the cascade.
      images: float [N, S, S, channels], normalised as in training.
      labels: int [N].
      quality: 'correct', or 'probability' of the true class.
      decision_cost: MACs of one decision.
      batch: images per compiled call.

    Raises:
      UserError: `quality` is not known.
    """
    if quality not in ("correct", "probability"):
        raise UserError(f"quality={quality!r} is not known; choose 'correct' or 'probability'")
    run, parts = _compiled_tree(cascade, quality), []
    for start in range(0, len(labels), batch):
        rows, targets = images[start : start + batch], labels[start : start + batch]
        missing = batch - len(targets)
        padded = np.pad(rows, [(0, missing)] + [(0, 0)] * 3), np.pad(targets, (0, missing))
        parts.append([leaf[: len(targets)] for leaf in jax.device_get(run(params, *padded))])
    features, predicted, score = (jnp.asarray(np.concatenate(column)) for column in zip(*parts))
    cost = jnp.asarray(node_costs(cascade, decision_cost), jnp.float32)
    return CascadeTable(features, predicted, score, jnp.asarray(labels, jnp.int32), cost)


def optimal_actions(cascade: Cascade, table: CascadeTable, cost_weight: jax.Array) -> jax.Array:
    """Returns the best action at every node for an agent that knows the labels, by backward induction.

    Args:
      cascade: the tree.
      table: the decision process.
      cost_weight: float32 scalar, utility lost per dense network of MACs.

    Returns:
      int32 [N, nodes]; of equal actions the first.
    """
    stop = table.quality - cost_weight * table.cost
    values, actions = {}, {}
    for node in reversed(range(cascade.num_nodes)):
        choices = [stop[:, node] if node else jnp.full(stop.shape[:1], -jnp.inf, stop.dtype)]
        choices += [values[child] for child in cascade.children[node]]
        values[node] = jnp.max(jnp.stack(choices), axis=0)
        actions[node] = jnp.argmax(jnp.stack(choices), axis=0).astype(jnp.int32)
    return jnp.stack([actions[node] for node in range(cascade.num_nodes)], axis=1)


def stop_nodes(cascade: Cascade, actions: jax.Array) -> jax.Array:
    """Returns the node at which every image stops, int32 [N].

    Args:
      cascade: the tree.
      actions: int32 [N, nodes], the action that is taken at each node.
    """
    next_nodes, node = jnp.asarray(cascade.next_nodes), jnp.full(actions.shape[0], START, jnp.int32)
    for _ in range(cascade.horizon):
        node = next_nodes[node, jnp.take_along_axis(actions, node[:, None], axis=1)[:, 0]]
    return node


class TableState(NamedTuple):
    """B episodes of look-ups.

    Attributes:
      image: int32 [B], row of the table.
      node: int32 [B].
      cost_weight: float32 [B].
    """

    image: jax.Array
    node: jax.Array
    cost_weight: jax.Array


class TableParams(NamedTuple):
    """What stays fixed during an update of the selector.

    Attributes:
      table: the decision process.
      cost_weight: a scalar, or (lowest, highest) between which every episode samples its own.
    """

    table: CascadeTable
    cost_weight: Any


@dataclass(frozen=True)
class TableEnv:
    """The decision process of a cascade by table look-ups, with the interface of gymnax.

    An episode begins at the start and ends when the image stops, or has no further step. Rewards are the changes of
    utility = quality - cost_weight x cost, so the return is the utility of the answer with which the image stopped.

    Attributes:
      cascade: the tree.
      batch: B, episodes per update.
      sees_every_budget: whether cost weights are sampled per episode; rewards are then scaled by `reward_scale`.
    """

    cascade: Cascade
    batch: int
    sees_every_budget: bool = True

    @property
    def horizon(self) -> int:
        """Decisions per episode, at most."""
        return self.cascade.horizon

    @property
    def observation_size(self) -> int:
        """Length of an observation."""
        return observation_size(self.cascade)

    def reset(self, key: jax.Array, env_params: TableParams) -> tuple[jax.Array, TableState]:
        """Draws images and cost weights.

        Args:
          key: random key.
          env_params: what stays fixed during the update.

        Returns:
          The first observation, float32 [B, D], and the state.
        """
        image = jax.random.randint(key, (self.batch,), 0, env_params.table.labels.shape[0], dtype=jnp.int32)
        if isinstance(env_params.cost_weight, tuple):
            cost_weight = sample_cost_weights(jax.random.fold_in(key, 1), env_params.cost_weight, self.batch)
        else:
            cost_weight = jnp.broadcast_to(env_params.cost_weight, (self.batch,))
        state = TableState(image, jnp.full(self.batch, START, jnp.int32), cost_weight)
        return self._observe(state, env_params), state

    def step(
        self, key: jax.Array, env_state: TableState, action: jax.Array, env_params: TableParams
    ) -> tuple[jax.Array, TableState, jax.Array, jax.Array, dict[str, jax.Array]]:
        """Stops or goes on.

        Args:
          key: not used, transitions are deterministic; part of the interface of gymnax.
          env_state: state before the step.
          action: int32 [B, 1], 0 stops.
          env_params: what stays fixed during the update.

        Returns:
          Observation float32 [B, D], state, reward float32 [B], done bool [B], and info: `correct` and `macs_kept` of
          the answer at the node, float32 [B] each.
        """
        table, before = env_params.table, env_state.node
        node = jnp.asarray(self.cascade.next_nodes)[before, action[:, 0]]
        state = env_state._replace(node=node)
        reward = self._utility(state, env_params) - self._utility(env_state, env_params)
        if self.sees_every_budget:
            reward = reward * reward_scale(state.cost_weight)
        is_leaf = jnp.asarray([not children for children in self.cascade.children], bool)
        info = {
            "correct": table.correct[state.image, node].astype(jnp.float32),
            "macs_kept": table.cost[node],
        }
        return self._observe(state, env_params), state, reward, (action[:, 0] == 0) | is_leaf[node], info

    def action_mask(self, env_state: TableState, env_params: TableParams) -> jax.Array:
        """Returns which actions there are, bool [B, actions].

        Args:
          env_state: state of the episodes.
          env_params: not used.
        """
        return jnp.asarray(self.cascade.next_nodes >= 0)[env_state.node]

    def _observe(self, state: TableState, env_params: TableParams) -> jax.Array:
        features = env_params.table.features[state.image, state.node]
        return observe(self.cascade, state.node, features, state.cost_weight)

    def _utility(self, state: TableState, env_params: TableParams) -> jax.Array:
        table = env_params.table
        return table.quality[state.image, state.node] - state.cost_weight * table.cost[state.node]
