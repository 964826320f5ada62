"""A trained network as a function of images."""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass, field
from typing import Any, Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from prance_jax.adaptive.buckets import Buckets
from prance_jax.adaptive.budget import BudgetTable
from prance_jax.adaptive.executor import AdaptiveOutput, serve_adaptive
from prance_jax.core.checks import check_budget, check_finite, check_images
from prance_jax.core.errors import UserError
from prance_jax.core.old_names import renamed
from prance_jax.selector.policies import DecisionPolicy, PolicyWithCost
from prance_jax.serving.sharded import serve_sharded
from prance_jax.spec.macs import macs
from prance_jax.spec.model_spec import ModelSpec
from prance_jax.spec.token_counts import tokens_after_layers

Tree = Any


@dataclass(frozen=True)
class Explanation:
    """What the selector chose for one image, and what that costs.

    Attributes:
      predicted: index of the predicted class; with several labels per image the indices of all.
      macs_kept: MACs as a share of the dense MACs, the selector included.
      widths: embedding width of each layer, in channels.
      mlp_dims: hidden units of each layer's MLP.
      tokens: tokens that remain after each layer, CLS counted.
      tokens_of_patches: after each decision the token that carries each patch, -1 once it is
        pruned; int32 [P] each.
    """

    predicted: int | tuple[int, ...]
    macs_kept: float
    widths: tuple[int, ...]
    mlp_dims: tuple[int, ...]
    tokens: tuple[int, ...]
    tokens_of_patches: tuple[np.ndarray, ...]


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("params", "policy_params"),
    meta_fields=("buckets", "policy", "decision_cost", "budget_table", "chunk"),
)
@dataclass(frozen=True)
class AdaptiveModel:
    """A network with its selector and buckets; called with images it returns logits.

    Every image gets its own structure. Calls are compiled once per batch size. The model is a
    pytree: pass it to your own `jax.jit` as an argument, so its weights are no constants of the
    program.

        model = prance_jax.load("runs/digits_budgets")
        logits = model(images)                               # every image at the largest budget
        logits = model(images, budget=0.5)                   # half of the dense MACs on average
        run = jax.jit(lambda model, images: model(images).argmax(-1))

    Attributes:
      params: parameters of the network.
      policy_params: parameters of the policy, without a cost weight.
      buckets: static upper sizes of each group of layers; holds the `ModelSpec`.
      policy: takes the decisions.
      decision_cost: MACs of one decision.
      budget_table: calibrated budgets; None if the selector was trained for one budget.
      chunk: images that share a bucket, at most; small chunks round less, large ones use wide
        hardware better.
    """

    params: Tree = field(repr=False)
    policy_params: Tree = field(repr=False)
    buckets: Buckets
    policy: DecisionPolicy
    decision_cost: int = 0
    budget_table: BudgetTable | None = None
    chunk: int = 16

    plans = renamed("plans", "buckets")
    rule = renamed("rule", "policy")
    ladder = renamed("ladder", "budget_table")
    over = renamed("over", "shard")
    contract = renamed("contract", "certified_budget")

    @property
    def spec(self) -> ModelSpec:
        """The network's `ModelSpec`."""
        return self.buckets.spec

    def __call__(self, images: jax.Array, budget: jax.Array | float | None = None) -> jax.Array:
        """Classifies images, each with its own structure.

        Args:
          images: float [B, S, S, channels], normalised as in training.
          budget: mean MACs as a share of the dense MACs; float, or float32 [B] for one per image.
            None takes the largest calibrated budget. A new budget does not recompile. Needs a
            selector that was trained for every budget.

        Returns:
          Logits, float32 [B, num_classes].

        Raises:
          UserError: images have the wrong shape, are not floating point, or are not finite; or the
            budget is outside the calibrated range. Inside `jit` values are not checked, and budgets
            are clipped.
        """
        return self.serve(images, budget).logits

    def serve(self, images: jax.Array, budget: jax.Array | float | None = None) -> AdaptiveOutput:
        """Classifies images and returns decisions and buckets as well.

        Args:
          images: as in `__call__`.
          budget: as in `__call__`.

        Returns:
          Logits, structure, the token that carries each patch, and buckets; see `AdaptiveOutput`.

        Raises:
          UserError: as in `__call__`.
        """
        cost_weight = self._check(images, budget)
        return _serve_jit(self, jnp.asarray(images), cost_weight)

    def explain(self, images: jax.Array, budget: jax.Array | float | None = None) -> list[Explanation]:
        """Lists for each image what the selector chose and what that costs.

        Args:
          images: as in `__call__`.
          budget: as in `__call__`.

        Returns:
          One `Explanation` per image, on the host.

        Raises:
          UserError: as in `__call__`.
        """
        output = jax.device_get(self.serve(images, budget))
        full = macs(self.spec, self.spec.largest).total
        explanations = []
        for index, logits in enumerate(output.logits):
            structure = output.structure.image(index)
            explanations.append(
                Explanation(
                    predicted=self._predicted(logits),
                    macs_kept=macs(self.spec, structure, self.decision_cost).total / full,
                    widths=structure.widths,
                    mlp_dims=structure.mlp_dims,
                    tokens=tokens_after_layers(self.spec, structure),
                    tokens_of_patches=tuple(tokens[index] for tokens in output.tokens_of_patches),
                )
            )
        return explanations

    def shard(self, mesh: Mesh, axis: str = "data") -> Callable[..., jax.Array]:
        """Returns the model over the devices of a mesh, with the batch divided over one axis.

        Every device sorts and chunks its own images, so nothing crosses devices.

        Args:
          mesh: the devices.
          axis: mesh axis that divides the batch.

        Returns:
          (images, budget=None) -> logits, with arguments and errors as in `__call__`. It also
          raises UserError if the batch does not divide by the devices on `axis`.
        """

        def call(images: jax.Array, budget: jax.Array | float | None = None) -> jax.Array:
            return serve_sharded(_serve, self, mesh, axis, images, self._check(images, budget))

        return call

    def certified_budget(self, eps: float, delta: float) -> float:
        """Returns the cheapest budget at which at most a share `eps` of predictions changes.

        The guarantee holds for images like those of the calibration. `model(images, budget=...)`
        takes the result.

        Args:
          eps: largest rate of images whose predicted class differs from the full network's (largest
            structure, all tokens), in (0, 1).
          delta: probability with which a calibration may miss that rate, in (0, 1); confidence is 1
            - delta.

        Returns:
          A share of the dense MACs.

        Raises:
          UserError: no calibrated budget qualifies, or the selector was trained for one budget.

        Reference: Learn then Test, arXiv 2110.01052; see `BudgetTable.certified_budget`.
        """
        if self.budget_table is None:
            raise UserError(_ONE_BUDGET)
        return self.budget_table.certified_budget(eps, delta)

    def with_chunk(self, chunk: int) -> AdaptiveModel:
        """Returns the same model with another chunk size, in images."""
        return dataclasses.replace(self, chunk=chunk)

    def _predicted(self, logits: np.ndarray) -> int | tuple[int, ...]:
        if self.spec.multi_label:
            return tuple(int(index) for index in np.flatnonzero(logits > 0))
        return int(logits.argmax())

    def _check(self, images: jax.Array, budget: jax.Array | float | None) -> jax.Array | None:
        """Checks the arguments of a call and returns the cost weight of the budget."""
        check_images(images, self.spec.image_shape)
        check_finite(images)
        if self.budget_table is None:
            if budget is not None:
                raise UserError(_ONE_BUDGET)
            return None
        budget = self.budget_table.range[1] if budget is None else budget
        check_budget(budget, *self.budget_table.range, images.shape[0])
        return self.budget_table.cost_weight(budget)


_ONE_BUDGET = (
    "this selector was trained for one budget; for others train with selector.cost_weights, as "
    "configs/digits_budgets.py"
)


def _serve(model: AdaptiveModel, images: jax.Array, cost_weight: jax.Array | None) -> AdaptiveOutput:
    conditioned_params = (
        model.policy_params if cost_weight is None else PolicyWithCost(model.policy_params, cost_weight)
    )
    return serve_adaptive(
        model.buckets, model.policy, model.params, conditioned_params, images, jax.random.key(0), model.chunk
    )


_serve_jit = jax.jit(_serve)
