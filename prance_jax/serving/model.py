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

from prance_jax.adaptive.buckets import Plans
from prance_jax.adaptive.budget import Ladder
from prance_jax.adaptive.executor import Served, serve
from prance_jax.core.checks import check_images
from prance_jax.core.errors import UserError
from prance_jax.selector.policies import Priced, Rule
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
    hidden: tuple[int, ...]
    tokens: tuple[int, ...]
    surviving: tuple[np.ndarray, ...]


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("params", "policy"),
    meta_fields=("plans", "rule", "decision_cost", "ladder", "chunk"),
)
@dataclass(frozen=True)
class AdaptiveModel:
    """A network, a selector and the plans that they are served with; a pytree, so that it can be passed to `jax.jit`.

    ladder: what each budget costs, where the selector was trained for every budget; else None.
    chunk: images that share a plan in a batch.
    """

    params: Tree
    policy: Tree
    plans: Plans
    rule: Rule
    decision_cost: int = 0
    ladder: Ladder | None = None
    chunk: int = 16

    @property
    def spec(self):
        return self.plans.spec

    def __call__(self, images: jax.Array, budget: jax.Array | float | None = None) -> jax.Array:
        """Logits float32 [B, num_classes] of images [B, S, S, channels].

        budget: share of the full network's MACs, a number or [B]; needs a selector that was trained for every budget.
        Raises UserError for images of another shape, not of floating point, or (outside of jit) not finite, and for a
        budget that was not calibrated.
        """
        return self.serve(images, budget).logits

    def serve(self, images: jax.Array, budget: jax.Array | float | None = None) -> Served:
        """Logits, decisions and plans of a batch, see `Served`; arguments and errors as in `__call__`."""
        price = self._checked(images, budget)
        return _run(self, jnp.asarray(images), price)

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
                    hidden=own.hidden,
                    tokens=token_counts(self.spec, own).mlp,
                    surviving=tuple(owner[index] for owner in served.owners),
                )
            )
        return found

    def over(self, mesh: Mesh, axis: str = "data") -> Callable[..., jax.Array]:
        """The model over the devices of a mesh: a function (images, budget) -> logits, sharded over `axis` of the batch.

        Every device sorts and chunks its own images, so that nothing crosses devices. Arguments and errors as in
        `__call__`; the batch must divide by the devices on `axis`.
        """
        devices = mesh.shape[axis]

        def call(images: jax.Array, budget: jax.Array | float | None = None) -> jax.Array:
            price = self._checked(images, budget)
            if images.shape[0] % devices:
                raise UserError(f"a batch of {images.shape[0]} does not divide by {devices} devices; pad it")
            if price is not None:
                price = jnp.broadcast_to(price, images.shape[:1])
            return _sharded(mesh, axis)(self, jnp.asarray(images), price)

        return call

    def contract(self, eps: float, delta: float) -> float:
        """The cheapest budget whose disagreement with the full network is at most `eps` with confidence 1 - delta, see
        `adaptive.budget.Ladder.contract`; raises UserError where there is none, or only one budget."""
        if self.ladder is None:
            raise UserError(_ONE_BUDGET)
        return self.ladder.contract(eps, delta)

    def with_chunk(self, chunk: int) -> AdaptiveModel:
        """The same with another chunk size."""
        return dataclasses.replace(self, chunk=chunk)

    def _checked(self, images: jax.Array, budget: jax.Array | float | None) -> jax.Array | None:
        """The price of the budget; raises UserError for what does not fit."""
        spec = self.spec
        check_images(images, (spec.image_size, spec.image_size, spec.channels))
        return self._price(budget)

    def _price(self, budget: jax.Array | float | None) -> jax.Array | None:
        if self.ladder is None:
            if budget is not None:
                raise UserError(_ONE_BUDGET)
            return None
        return self.ladder.price(self.ladder.range[1] if budget is None else budget)


_ONE_BUDGET = "this selector was trained for one budget; train with selector.prices to choose it here"


def _serve(model: AdaptiveModel, images: jax.Array, price: jax.Array | None) -> Served:
    variables = model.policy if price is None else Priced(model.policy, price)
    return serve(model.plans, model.rule, model.params, variables, images, jax.random.key(0), model.chunk)


_run = jax.jit(_serve)


@functools.lru_cache(maxsize=None)
def _sharded(mesh: Mesh, axis: str) -> Callable:
    whole, part = PartitionSpec(), PartitionSpec(axis)
    run = lambda model, images, price: _serve(model, images, price).logits
    return jax.jit(
        jax.shard_map(run, mesh=mesh, in_specs=(whole, part, part), out_specs=part, check_vma=False)
    )
