"""A model over the devices of a mesh: each device serves its part of the batch, and nothing crosses devices."""

from __future__ import annotations

import functools
from typing import Any, Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from prance_jax.core.errors import UserError

# (model, images, cost weight or None) -> output with the field `logits`.
Serve = Callable[[Any, jax.Array, jax.Array | None], Any]


def serve_sharded(
    serve: Serve, model: Any, mesh: Mesh, axis: str, images: jax.Array, cost_weight: jax.Array | None
) -> jax.Array:
    """Returns the logits of a batch that is divided over one axis of a mesh.

    Args:
      serve: runs the model on one device.
      model: a pytree.
      mesh: the devices.
      axis: mesh axis that divides the batch.
      images: float [B, S, S, channels].
      cost_weight: float32, scalar or [B]; None for a model of one budget.

    Raises:
      UserError: the batch does not divide by the devices on `axis`.
    """
    if images.shape[0] % mesh.shape[axis]:
        raise UserError(f"a batch of {images.shape[0]} does not divide by {mesh.shape[axis]} devices; pad it")
    if cost_weight is not None:
        cost_weight = jnp.broadcast_to(cost_weight, images.shape[:1])
    return sharded_program(serve, mesh, axis)(model, jnp.asarray(images), cost_weight)


@functools.lru_cache(maxsize=None)
def sharded_program(serve: Serve, mesh: Mesh, axis: str) -> Callable:
    """Compiles (model, images, cost weight) -> logits over a mesh.

    Args:
      serve: as in `serve_sharded`.
      mesh: the devices.
      axis: mesh axis that divides the batch.
    """
    replicated, divided = PartitionSpec(), PartitionSpec(axis)
    run = lambda model, images, cost_weight: serve(model, images, cost_weight).logits
    return jax.jit(
        jax.shard_map(
            run, mesh=mesh, in_specs=(replicated, divided, divided), out_specs=divided, check_vma=False
        )
    )
