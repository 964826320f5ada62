"""A trained network as a function of images: `model = prance_jax.load(workdir)`, `logits = model(images)`."""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from typing import Any, Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from prance_jax.adaptive.buckets import Buckets
from prance_jax.adaptive.budget import BudgetTable
from prance_jax.adaptive.executor import Served, serve_adaptive
from prance_jax.core.checks import check_images
from prance_jax.core.errors import UserError
from prance_jax.selector.policies import DecisionPolicy, PolicyWithCost
from prance_jax.spec.macs import macs, token_counts

Tree = Any


@dataclass(frozen=True)
class Explanation:
    """What was decided for one image.

    predicted: class. macs_kept: share of the full network's MACs, the selector included. widths, hidden, tokens: per
    layer, as its MLP ran. surviving: per decision, for every patch the token that carries it, -1 once it was pruned,
    int32 [P].
    """

    predicted: int
    macs_kept: float
    widths: tuple[int, ...]
    mlp_dims: tuple[int, ...]
    tokens: tuple[int, ...]
    surviving: tuple[np.ndarray, ...]


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("params", "policy_params"),
    meta_fields=("buckets", "policy", "decision_cost", "budget_table", "chunk"),
)
@dataclass(frozen=True)
class AdaptiveModel:
    """A network, a selector and the plans that they are served with; a pytree, so that it can be passed to `jax.jit`.

    ladder: what each budget costs, where the selector was trained for every budget; else None.
    chunk: images that share a plan in a batch.
    """

    params: Tree
    policy_params: Tree
    buckets: Buckets
    policy: DecisionPolicy
    decision_cost: int = 0
    budget_table: BudgetTable | None = None
    chunk: int = 16

    @property
    def spec(self):
        return self.buckets.spec

    def __call__(self, images: jax.Array, budget: jax.Array | float | None = None) -> jax.Array:
        """Logits float32 [B, num_classes] of images [B, S, S, channels].

        budget: share of the full network's MACs, a number or [B]; needs a selector that was trained for every budget.
        Raises UserError for images of another shape, not of floating point, or (outside of jit) not finite, and for a
        budget that was not calibrated.
        """
        return self.serve(images, budget).logits

    def serve(self, images: jax.Array, budget: jax.Array | float | None = None) -> Served:
        """Logits, decisions and plans of a batch, see `Served`; arguments and errors as in `__call__`."""
        cost_weight = self._checked(images, budget)
        return _run(self, jnp.asarray(images), cost_weight)

    def explain(self, images: jax.Array, budget: jax.Array | float | None = None) -> list[Explanation]:
        """What was decided for each image; arguments and errors as in `__call__`."""
        served = jax.device_get(self.serve(images, budget))
        full = macs(self.spec, self.spec.largest).total
        found = []
        for index, logits in enumerate(served.logits):
            own = served.structure.image(index)
            found.append(
                Explanation(
                    predicted=int(logits.argmax()),
                    macs_kept=macs(self.spec, own, self.decision_cost).total / full,
                    widths=own.widths,
                    mlp_dims=own.mlp_dims,
                    tokens=token_counts(self.spec, own).mlp,
                    surviving=tuple(token_of_patch[index] for token_of_patch in served.tokens_of_patches),
                )
            )
        return found

    def shard(self, mesh: Mesh, axis: str = "data") -> Callable[..., jax.Array]:
        """The model over the devices of a mesh: a function (images, budget) -> logits, sharded over `axis` of the batch.

        Every device sorts and chunks its own images, so that nothing crosses devices. Arguments and errors as in
        `__call__`; the batch must divide by the devices on `axis`.
        """
        devices = mesh.shape[axis]

        def call(images: jax.Array, budget: jax.Array | float | None = None) -> jax.Array:
            cost_weight = self._checked(images, budget)
            if images.shape[0] % devices:
                raise UserError(f"a batch of {images.shape[0]} does not divide by {devices} devices; pad it")
            if cost_weight is not None:
                cost_weight = jnp.broadcast_to(cost_weight, images.shape[:1])
            return _sharded(mesh, axis)(self, jnp.asarray(images), cost_weight)

        return call

    def certified_budget(self, eps: float, delta: float) -> float:
        """The cheapest budget whose disagreement with the full network is at most `eps` with confidence 1 - delta, see
        `adaptive.budget.Ladder.contract`; raises UserError where there is none, or only one budget."""
        if self.budget_table is None:
            raise UserError(_ONE_BUDGET)
        return self.budget_table.certified_budget(eps, delta)

    def with_chunk(self, chunk: int) -> AdaptiveModel:
        """The same with another chunk size."""
        return dataclasses.replace(self, chunk=chunk)

    def _checked(self, images: jax.Array, budget: jax.Array | float | None) -> jax.Array | None:
        """The price of the budget; raises UserError for what does not fit."""
        spec = self.spec
        check_images(images, (spec.image_size, spec.image_size, spec.channels))
        return self._price(budget)

    def _price(self, budget: jax.Array | float | None) -> jax.Array | None:
        if self.budget_table is None:
            if budget is not None:
                raise UserError(_ONE_BUDGET)
            return None
        return self.budget_table.cost_weight(self.budget_table.range[1] if budget is None else budget)


_ONE_BUDGET = "this selector was trained for one budget; train with selector.cost_weights to choose it here"


def _serve(model: AdaptiveModel, images: jax.Array, cost_weight: jax.Array | None) -> Served:
    conditioned_params = (
        model.policy_params if cost_weight is None else PolicyWithCost(model.policy_params, cost_weight)
    )
    return serve_adaptive(
        model.buckets, model.policy, model.params, conditioned_params, images, jax.random.key(0), model.chunk
    )


_run = jax.jit(_serve)


@functools.lru_cache(maxsize=None)
def _sharded(mesh: Mesh, axis: str) -> Callable:
    whole, part = PartitionSpec(), PartitionSpec(axis)
    run = lambda model, images, cost_weight: _serve(model, images, cost_weight).logits
    return jax.jit(
        jax.shard_map(run, mesh=mesh, in_specs=(whole, part, part), out_specs=part, check_vma=False)
    )
