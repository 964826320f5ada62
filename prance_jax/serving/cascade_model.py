"""A trained cascade as a function of images."""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass, field
from typing import Any, Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from prance_jax.adaptive.budget import BudgetTable
from prance_jax.cascade.executor import ServedOutput, serve_cascade
from prance_jax.cascade.observation import LARGEST_PROBABILITY
from prance_jax.cascade.policies import SelectorDecisions
from prance_jax.cascade.table import node_costs
from prance_jax.core.checks import check_budget, check_finite, check_images
from prance_jax.selector.observation import mlp_macs
from prance_jax.serving.sharded import serve_sharded
from prance_jax.spec.cascade import START, Cascade
from prance_jax.spec.model_spec import ModelSpec

Tree = Any


@dataclass(frozen=True)
class ExitAnswer:
    """One answer on the way of an image.

    Attributes:
      look: index of the look.
      group: group at whose end the exit is.
      predicted: index of the class with the largest probability.
      probability: its probability.
      macs_kept: MACs so far as a share of the dense MACs, decisions included.
    """

    look: int
    group: int
    predicted: int
    probability: float
    macs_kept: float


@dataclass(frozen=True)
class CascadeExplanation:
    """Where an image stopped, and the answers on its way.

    Attributes:
      predicted: index of the predicted class.
      macs_kept: MACs as a share of the dense MACs, decisions included.
      node: node of the tree at which it stopped.
      answers: the answers on the way; the last one is the prediction.
    """

    predicted: int
    macs_kept: float
    node: int
    answers: tuple[ExitAnswer, ...]


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("params", "policy_params"),
    meta_fields=("decisions", "budget_table", "default_budget", "chunk"),
)
@dataclass(frozen=True)
class CascadeModel:
    """A cascade with its selector; called with images it returns logits.

    Every image takes its own path, and an image that stopped costs nothing more. Calls are compiled once per batch size.
    The model is a pytree: pass it to your own `jax.jit` as an argument.

        model = prance_jax.load("runs/demo")
        logits = model(images)                 # at `default_budget`
        logits = model(images, budget=0.3)     # 30 % of the dense MACs on average
        model.explain(images[:1], budget=0.3)  # where it stopped, and the answers on the way

    Attributes:
      params: parameters of the cascade.
      policy_params: parameters of the selector.
      decisions: the selector; holds the tree.
      budget_table: calibrated budgets.
      default_budget: budget where none is given, a share of the dense MACs.
      chunk: images that run together, at most; small chunks waste less, large ones use wide hardware better.
    """

    params: Tree = field(repr=False)
    policy_params: Tree = field(repr=False)
    decisions: SelectorDecisions
    budget_table: BudgetTable
    default_budget: float
    chunk: int = 8

    @property
    def cascade(self) -> Cascade:
        """The tree of steps."""
        return self.decisions.cascade

    @property
    def spec(self) -> ModelSpec:
        """`ModelSpec` of the dense network, see `CascadeSpec.dense`."""
        return self.cascade.spec.dense

    @property
    def decision_cost(self) -> int:
        """MACs of one decision."""
        ppo = self.decisions.ppo
        return mlp_macs(ppo.observation_size, ppo.hidden, ppo.distribution.outputs)

    def __call__(self, images: jax.Array, budget: jax.Array | float | None = None) -> jax.Array:
        """Classifies images, each by its own path.

        Args:
          images: float [B, S, S, channels], normalised as in training.
          budget: mean MACs as a share of the dense MACs; float, or float32 [B] for one per image. None takes
            `default_budget`. A new budget does not recompile.

        Returns:
          Logits, float32 [B, num_classes].

        Raises:
          UserError: images have the wrong shape, are not floating point, or are not finite; or the budget is outside the
            calibrated range. Inside `jit` values are not checked, and budgets are clipped.
        """
        return self.serve(images, budget).logits

    def serve(self, images: jax.Array, budget: jax.Array | float | None = None) -> ServedOutput:
        """Classifies images and returns where they stopped as well.

        Args:
          images: as in `__call__`.
          budget: as in `__call__`.

        Returns:
          Logits, nodes, and the answers on the way; see `ServedOutput`.

        Raises:
          UserError: as in `__call__`.
        """
        return _serve_jit(self, jnp.asarray(images), self._check(images, budget))

    def explain(self, images: jax.Array, budget: jax.Array | float | None = None) -> list[CascadeExplanation]:
        """Lists for each image at which exit it stopped, and the probabilities of the answers on the way.

        Args:
          images: as in `__call__`.
          budget: as in `__call__`.

        Returns:
          One `CascadeExplanation` per image, on the host.

        Raises:
          UserError: as in `__call__`.
        """
        output = jax.device_get(self.serve(images, budget))
        costs = node_costs(self.cascade, self.decision_cost)
        explanations = []
        for index, node in enumerate(output.node):
            answers = []
            for number, passed in enumerate(self.cascade.path(int(node))):
                step = self.cascade.steps[passed - 1]
                answers.append(
                    ExitAnswer(
                        look=step.look,
                        group=step.last_group,
                        predicted=int(output.predicted[index, number]),
                        probability=float(output.features[index, number, LARGEST_PROBABILITY]),
                        macs_kept=float(costs[passed]),
                    )
                )
            predicted = int(output.logits[index].argmax())
            explanations.append(CascadeExplanation(predicted, float(costs[node]), int(node), tuple(answers)))
        return explanations

    def shard(self, mesh: Mesh, axis: str = "data") -> Callable[..., jax.Array]:
        """Returns the model over the devices of a mesh, with the batch divided over one axis.

        Every device sorts and chunks its own images, so nothing crosses devices.

        Args:
          mesh: the devices.
          axis: mesh axis that divides the batch.

        Returns:
          (images, budget=None) -> logits, with arguments and errors as in `__call__`. It also raises UserError if the
          batch does not divide by the devices on `axis`.
        """

        def call(images: jax.Array, budget: jax.Array | float | None = None) -> jax.Array:
            return serve_sharded(_serve, self, mesh, axis, images, self._check(images, budget))

        return call

    def certified_budget(self, eps: float, delta: float) -> float:
        """Returns the cheapest budget at which at most a share `eps` of predictions changes.

        Predictions are compared with those of the dearest path of the tree. `model(images, budget=...)` takes the result.

        Args:
          eps: largest rate of images whose predicted class differs, in (0, 1).
          delta: probability with which a calibration may miss that rate, in (0, 1).

        Returns:
          A share of the dense MACs.

        Raises:
          UserError: no calibrated budget qualifies.

        Reference: Learn then Test, arXiv 2110.01052; see `BudgetTable.certified_budget`.
        """
        return self.budget_table.certified_budget(eps, delta)

    def with_chunk(self, chunk: int) -> CascadeModel:
        """Returns the same model with another chunk size, in images."""
        return dataclasses.replace(self, chunk=chunk)

    def _check(self, images: jax.Array, budget: jax.Array | float | None) -> jax.Array:
        """Checks the arguments of a call and returns the cost weight of the budget."""
        check_images(images, self.spec.image_shape)
        check_finite(images)
        budget = self.default_budget if budget is None else budget
        check_budget(budget, *self.budget_table.range, images.shape[0])
        return self.budget_table.cost_weight(budget)


def dearest_node(cascade: Cascade) -> int:
    """Returns the node with the most MACs, whose answer is the reference of the guarantee."""
    return int(np.argmax([total if node != START else -1 for node, total in enumerate(cascade.macs)]))


def _serve(model: CascadeModel, images: jax.Array, cost_weight: jax.Array) -> ServedOutput:
    decide = model.decisions(model.policy_params, cost_weight)
    return serve_cascade(model.cascade, model.params, images, decide, model.chunk)


_serve_jit = jax.jit(_serve)
