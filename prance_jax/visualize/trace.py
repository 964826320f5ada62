"""Records what a decision policy chooses for every image, decision by decision."""

from __future__ import annotations

import functools
from typing import Any, Callable, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from prance_jax.experiments.stage_runner import TableEntry
from prance_jax.models.forward import forward_adaptive
from prance_jax.models.vit import ViT
from prance_jax.selector.policies import DecisionPolicy
from prance_jax.spec.macs import macs
from prance_jax.spec.model_spec import ModelSpec
from prance_jax.spec.structure import Structure
from prance_jax.spec.token_counts import tokens_after_layers


class Trace(NamedTuple):
    """Decisions for N images under one policy; L layers, D decisions, P patches.

    Attributes:
      predicted: int [N], predicted class.
      macs_kept: float [N], share of the dense network's MACs, the selector included.
      widths: int [N, L], embedding width of each layer.
      mlp_dims: int [N, L], hidden units of each MLP.
      keep: float [N, D, rates], keep rates of each decision.
      tokens: int [N, D + 1], tokens at the start and after each decision, CLS included.
      tokens_of_patches: int [N, D, P], token of each patch after each decision; -1 once pruned.
    """

    predicted: np.ndarray
    macs_kept: np.ndarray
    widths: np.ndarray
    mlp_dims: np.ndarray
    keep: np.ndarray
    tokens: np.ndarray
    tokens_of_patches: np.ndarray

    def select(self, index: Any) -> Trace:
        """Returns the images of an index, a slice or an index array."""
        return Trace(*(field[index] for field in self))


def trace_images(row: TableEntry, images: np.ndarray, batch: int = 250) -> Trace:
    """Runs a row of the table on images and records its decisions, on this host alone.

    Args:
      row: network, parameters and decision policy.
      images: float [N, S, S, channels], normalised as in training.
      batch: images that run together; one compiled program serves any N.
    """
    run, parts = _compiled_trace(row.spec, row.policy, row.decision_cost), []
    for number, start in enumerate(range(0, len(images), batch)):
        part = np.asarray(images[start : start + batch])
        padded = np.pad(part, [(0, batch - len(part))] + [(0, 0)] * 3)
        key = jax.random.fold_in(jax.random.key(0), number)
        padded_trace = jax.device_get(run(row.params, row.policy_params, padded, key))
        parts.append(padded_trace.select(slice(len(part))))
    return Trace(*map(np.concatenate, zip(*parts)))


@functools.lru_cache(maxsize=None)
def _compiled_trace(spec: ModelSpec, policy: DecisionPolicy, decision_cost: int) -> Callable:
    """Compiles (params, policy_params, images, key) -> `Trace`."""
    model = ViT(spec)
    dense_macs = float(macs(spec, spec.largest).total)

    def run(params, policy_params, images, key):
        per_image = lambda size: jnp.broadcast_to(jnp.asarray(size), images.shape[:1])
        choose, states = policy.decide(policy_params, key), []

        def decide(group, state):
            states.append(state)
            return choose(group, state)

        output = forward_adaptive(model, params, images, policy.first_choice, decide)
        after_groups = [*(state.tokens for state in states[1:]), output.tokens]
        tokens_of_patches = [after.token_of_patch for after in after_groups]
        groups = jax.tree.map(per_image, output.structure.groups)
        per_layer = lambda name: jnp.stack(
            [size for group in groups for size in getattr(group, name)], axis=1
        )
        cost = macs(spec, Structure(groups), decision_cost).total
        tokens_after = tokens_after_layers(spec, Structure(groups))
        tokens = [per_image(tokens_after[last]) for last in spec.space.last_layers]
        keep = [jnp.stack(group.keep, axis=1) for group in groups[1:]]
        return Trace(
            predicted=jnp.argmax(output.logits, axis=-1),
            macs_kept=cost / dense_macs,
            widths=per_layer("widths"),
            mlp_dims=per_layer("mlp_dims"),
            keep=jnp.stack(keep, axis=1),
            tokens=jnp.stack(tokens, axis=1),
            tokens_of_patches=jnp.stack(tokens_of_patches, axis=1),
        )

    return jax.jit(run)
