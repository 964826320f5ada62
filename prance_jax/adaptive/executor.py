"""The adaptive executor: per-image decisions that save real time, in one compiled program of static shapes.

At every decision point the batch is put in order of the plans that its images need and cut into chunks. A chunk runs
the largest plan among its members: `lax.map` over chunks, `lax.switch` over plans, so that only that branch is run.
Inside its plan every image keeps its own widths and tokens by masks (`Within`). So the result is that of masked
execution, whatever else is in the batch: plans decide what it costs, never what comes out.
"""

from __future__ import annotations

import functools
from typing import Any, Callable, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from prance_jax.adaptive.buckets import Bucket, Buckets
from prance_jax.core.sizes import BoundedSize, size_value
from prance_jax.models.forward import forward_first_group, forward_group, forward_head
from prance_jax.models.vit import GroupState, ViT
from prance_jax.selector.policies import DecisionPolicy
from prance_jax.spec.structure import Structure
from prance_jax.tokens.token_set import resized

Tree = Any


class Served(NamedTuple):
    """What the executor tells of a batch, in input order.

    logits: float32 [B, num_classes]. structure: what was decided, per image. owners: after each decision, for every
    patch the token that carries it, -1 once it was pruned, int32 [B, P] each. needed, run_in: index of the plan that an
    image needed, and of the one that its chunk ran, int32 [B] per decision.
    """

    logits: jax.Array
    structure: Structure
    tokens_of_patches: tuple[jax.Array, ...]
    needed: tuple[jax.Array, ...]
    bucket_used: tuple[jax.Array, ...]


def serve_adaptive(
    buckets: Buckets,
    policy: DecisionPolicy,
    params: Tree,
    policy_params: Tree,
    images: jax.Array,
    key: jax.Array,
    chunk: int = 8,
) -> Served:
    """Runs a batch of images; pure, to be jitted by the caller with `plans`, `rule` and `chunk` static.

    images: [B, S, S, channels]. rule, variables, key: who decides, see `selector.decide`. chunk: images that share a
    plan, at most; small chunks round less, large ones use wide hardware better. A batch of one chunk is not sorted.
    """
    model, batch, last = ViT(buckets.spec), images.shape[0], buckets.spec.space.groups - 1
    decide = policy.decide(policy_params, key)
    state = forward_first_group(model, params, images, buckets.first_choice)
    choices, tokens_of_patches, needed, bucket_used = [buckets.first_choice], [], [], []
    arrived = jnp.zeros(batch, jnp.int32)
    for group in range(1, last + 1):
        choice = decide(group, state)
        # A rule may decide for all images at once; chunks need it per image.
        choice = jax.tree.map(lambda size: jnp.broadcast_to(size, (batch,)), choice)
        bucket = buckets.index(group, choice, jnp.broadcast_to(state.tokens.count, (batch,)))
        branches = _branches(buckets, model, params, group)
        state, ran = map_chunks(branches, bucket, arrived, (_arriving(state), choice), chunk)
        choices.append(choice)
        needed.append(bucket)
        bucket_used.append(ran)
        tokens_of_patches.append(state.token_of_patch if group == last else state.tokens.token_of_patch)
        arrived = bucket
    return Served(
        state.logits, Structure(tuple(choices)), tuple(tokens_of_patches), tuple(needed), tuple(bucket_used)
    )


class _Finished(NamedTuple):
    logits: jax.Array
    token_of_patch: jax.Array


def _arriving(state: GroupState) -> GroupState:
    """What a group reads of the state before it, per image: not what was for the decision, and not the static sizes of
    group 0."""
    per_image = {
        name: None if isinstance(size, int) else size
        for name, size in (("width", state.width), ("mlp_dim", state.mlp_dim))
    }
    return state._replace(signals=None, early_logits=None, **per_image)


def _branches(buckets: Buckets, model: ViT, params: Tree, group: int) -> list[list[Callable]]:
    """[plan of the group][plan that its images come from]: functions of a chunk, with equal shapes out."""
    own, last = buckets.groups[group - 1], group == len(buckets.groups)
    if group == 1:
        static = {"width": buckets.first_choice.widths[-1], "mlp_dim": buckets.first_choice.mlp_dims[-1]}
        restore = [lambda state: state._replace(**static)]
    else:
        restore = [functools.partial(_shrink, source=source) for source in buckets.groups[group - 2]]

    def branch(bucket: Bucket, source: Callable) -> Callable:
        def run(part):
            state, choice = part
            out = forward_group(model, params, source(state), bucket.bound(choice), group)
            if last:
                return _Finished(forward_head(model, params, out), out.tokens.token_of_patch)
            return _pad(out, own[-1])

        return run

    return [[branch(bucket, source) for source in restore] for bucket in own]


def _shrink(state: GroupState, source: Bucket) -> GroupState:
    """Cuts a padded state to what images of a plan can hold."""
    width, mlp_dim = source.widths[-1], source.mlp_dims[-1]
    tokens = resized(state.tokens, source.tokens[-1])
    tokens = tokens._replace(features=tokens.features[:, :, :width])
    return state._replace(
        tokens=tokens, width=BoundedSize(state.width, width), mlp_dim=BoundedSize(state.mlp_dim, mlp_dim)
    )


def _pad(state: GroupState, bucket: Bucket) -> GroupState:
    """Gives every branch of a group the shapes of its largest plan."""
    more = bucket.tokens[-1] - state.tokens.features.shape[1]
    channels = bucket.widths[-1] - state.tokens.features.shape[2]
    tokens = resized(state.tokens, bucket.tokens[-1])
    tokens = tokens._replace(features=jnp.pad(tokens.features, ((0, 0), (0, 0), (0, channels))))
    pad = lambda x: jnp.pad(x, ((0, 0), (0, more), *[(0, 0)] * (x.ndim - 2)))
    signals = jax.tree.map(pad, state.signals)
    return GroupState(tokens, signals, size_value(state.width), size_value(state.mlp_dim), state.early_logits)


def map_chunks(
    branches: list[list[Callable | None]], bucket: jax.Array, source: jax.Array, parts: Tree, chunk: int
) -> tuple[Tree, jax.Array]:
    """Runs every image of a batch in a branch that holds its plan and the one it comes from.

    branches: [plan][source], None where no image can come from there. plan, source: int32 [B]; parts: leaves [B, ...].
    Returns the results in input order, and the plan that each ran in.
    """
    batch, sources = bucket.shape[0], len(branches[0])
    flat = [branch for row in branches for branch in row]
    there = [branch for branch in flat if branch is not None]
    place = jnp.asarray(np.cumsum([branch is not None for branch in flat]) - 1)

    def run(bucket, source, part):
        top = bucket.max()
        return jax.lax.switch(place[top * sources + source.max()], there, part), jnp.full(bucket.shape, top)

    chunks = -(-batch // chunk)
    if chunks == 1:
        return run(bucket, source, parts)
    size = -(-batch // chunks)
    order = jnp.argsort(bucket * sources + source)
    # What is missing to whole chunks is filled with the cheapest image, in front, where it costs least.
    missing = chunks * size - batch
    padded = jnp.concatenate([jnp.broadcast_to(order[:1], (missing,)), order])
    cut = lambda x: x[padded].reshape(chunks, size, *x.shape[1:])
    results = jax.lax.map(lambda xs: run(*xs), jax.tree.map(cut, (bucket, source, parts)))
    back = missing + jnp.argsort(order)
    return jax.tree.map(lambda x: x.reshape(chunks * size, *x.shape[2:])[back], results)
