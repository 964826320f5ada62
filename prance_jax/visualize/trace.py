"""What a rule decides for every image, decision by decision: the facts that the pictures show."""

from __future__ import annotations

import functools
from typing import Any, Callable, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from prance_jax.experiments.stage_runner import TableEntry
from prance_jax.models.forward import forward_first_group, forward_group, forward_head
from prance_jax.models.vit import ViT
from prance_jax.selector.policies import DecisionPolicy
from prance_jax.spec.macs import macs
from prance_jax.spec.model_spec import ModelSpec


class Trace(NamedTuple):
    """N images under one rule; L layers, D decisions, P patches.

    predicted: int [N]. macs_kept: [N], share of the full network's MACs, the selector included. widths, hidden: int [N, L].
    keep: [N, D, rates]. tokens: int [N, D + 1], CLS counted, at the start and after each decision. owners: int [N, D, P],
    after each decision for every patch the token that carries it, -1 once it was pruned.
    """

    predicted: np.ndarray
    macs_kept: np.ndarray
    widths: np.ndarray
    mlp_dims: np.ndarray
    keep: np.ndarray
    tokens: np.ndarray
    tokens_of_patches: np.ndarray

    def some(self, index: Any) -> Trace:
        """The images of an index or a slice."""
        return Trace(*(field[index] for field in self))


def trace_images(row: TableEntry, images: np.ndarray, batch: int = 250) -> Trace:
    """Runs a row of the table on images [N, S, S, channels], normalised; on this host alone. One program for any N."""
    run, parts = _run(row.spec, row.policy, row.decision_cost), []
    for number, start in enumerate(range(0, len(images), batch)):
        part = np.asarray(images[start : start + batch])
        padded = np.pad(part, [(0, batch - len(part))] + [(0, 0)] * 3)
        key = jax.random.fold_in(jax.random.key(0), number)
        found = jax.device_get(run(row.params, row.policy_params, padded, key))
        parts.append(found.some(slice(len(part))))
    return Trace(*map(np.concatenate, zip(*parts)))


@functools.lru_cache(maxsize=None)
def _run(spec: ModelSpec, policy: DecisionPolicy, decision_cost: int) -> Callable:
    """Compiled (params, variables, images, key) -> `Trace`: the walk, looked at after every decision."""
    model = ViT(spec)
    full = float(macs(spec, spec.largest).total)

    def run(params, policy_params, images, key):
        each = lambda size: jnp.broadcast_to(jnp.asarray(size), images.shape[:1])
        decide = policy.decide(policy_params, key)
        state, choices, tokens_of_patches = (
            forward_first_group(model, params, images, policy.first_choice),
            [policy.first_choice],
            [],
        )
        tokens = [each(spec.tokens)]
        for group in range(1, spec.space.groups):
            choices.append(decide(group, state))
            state = forward_group(model, params, state, choices[group], group)
            tokens.append(each(state.tokens.count))
            tokens_of_patches.append(state.tokens.token_of_patch)
        logits = forward_head(model, params, state)
        structure = jax.tree.map(each, tuple(choices))
        per_layer = lambda name: jnp.stack([own for one in structure for own in getattr(one, name)], axis=1)
        cost = macs(spec, type(spec.largest)(structure), decision_cost).total
        keep = [jnp.stack(one.keep, axis=1) for one in structure[1:]]
        return Trace(
            predicted=jnp.argmax(logits, axis=-1),
            macs_kept=cost / full,
            widths=per_layer("widths"),
            mlp_dims=per_layer("mlp_dims"),
            keep=jnp.stack(keep, axis=1),
            tokens=jnp.stack(tokens, axis=1),
            tokens_of_patches=jnp.stack(tokens_of_patches, axis=1),
        )

    return jax.jit(run)
