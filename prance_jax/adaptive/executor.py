"""The adaptive executor: per-image decisions that save time, in one compiled program.

At every decision point the batch is sorted by the buckets that its images need and split into
chunks. A chunk runs in the largest bucket that its images need: `lax.map` over chunks, `lax.switch`
over buckets, so only that branch runs. Inside its bucket every image keeps its own widths and
tokens by masks (`BoundedSize`). So the result is that of masked execution, whatever else is in the
batch: buckets change the time, not the result.
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
from prance_jax.models.outputs import GroupState
from prance_jax.models.vit import ViT
from prance_jax.selector.policies import DecisionPolicy
from prance_jax.spec.structure import Structure
from prance_jax.tokens.token_set import resize_slots

Tree = Any


class AdaptiveOutput(NamedTuple):
    """Result of the executor, in the order of the input.

    Attributes:
      logits: float32 [B, num_classes].
      structure: decisions, entries [B]; group 0 is static.
      tokens_of_patches: after each decision the token that carries each patch, -1 once it is
        pruned; int32 [B, P] each.
      bucket_needed: index of the bucket that an image needs, int32 [B] per decision.
      bucket_used: index of the bucket that its chunk ran in, int32 [B] per decision.
    """

    logits: jax.Array
    structure: Structure
    tokens_of_patches: tuple[jax.Array, ...]
    bucket_needed: tuple[jax.Array, ...]
    bucket_used: tuple[jax.Array, ...]


def serve_adaptive(
    buckets: Buckets,
    policy: DecisionPolicy,
    params: Tree,
    policy_params: Tree,
    images: jax.Array,
    key: jax.Array,
    chunk: int = 8,
) -> AdaptiveOutput:
    """Classifies images, each with its own structure, in the time of their buckets.

    Pure; to be jitted by the caller with `buckets`, `policy` and `chunk` static.

    Args:
      buckets: buckets of every group.
      policy: takes the decisions.
      params: parameters of the network.
      policy_params: parameters of the policy.
      images: float [B, S, S, channels], normalised as in training.
      key: random key of the policy.
      chunk: images that share a bucket, at most. Small chunks round less, large ones use wide
        hardware better. A batch of one chunk is not sorted.

    Returns:
      Logits, decisions and buckets.
    """
    model, batch, last = ViT(buckets.spec), images.shape[0], buckets.spec.space.groups - 1
    decide = policy.decide(policy_params, key)
    state = forward_first_group(model, params, images, buckets.first_choice)
    choices, tokens_of_patches, bucket_needed, bucket_used = [buckets.first_choice], [], [], []
    source = jnp.zeros(batch, jnp.int32)
    for group in range(1, last + 1):
        choice = decide(group, state)
        # A policy may decide for all images at once; chunks need it per image.
        choice = jax.tree.map(lambda size: jnp.broadcast_to(size, (batch,)), choice)
        bucket = buckets.index(group, choice, jnp.broadcast_to(state.tokens.count, (batch,)))
        branches = _branches(buckets, model, params, group)
        state, used = map_chunks(branches, bucket, source, (_per_image(state), choice), chunk)
        choices.append(choice)
        bucket_needed.append(bucket)
        bucket_used.append(used)
        tokens_of_patches.append(state.token_of_patch if group == last else state.tokens.token_of_patch)
        source = bucket
    return AdaptiveOutput(
        state.logits,
        Structure(tuple(choices)),
        tuple(tokens_of_patches),
        tuple(bucket_needed),
        tuple(bucket_used),
    )


class LastGroupOutput(NamedTuple):
    """What a branch of the last group returns.

    Attributes:
      logits: float32 [B, num_classes].
      token_of_patch: int32 [B, P], see `TokenSet`.
    """

    logits: jax.Array
    token_of_patch: jax.Array


def _per_image(state: GroupState) -> GroupState:
    """Drops from a state its static sizes and what only decisions read; all else is per image."""
    sizes = {
        name: None if isinstance(size, int) else size
        for name, size in (("width", state.width), ("mlp_dim", state.mlp_dim))
    }
    return state._replace(signals=None, early_logits=None, patch_attention=None, **sizes)


def _branches(buckets: Buckets, model: ViT, params: Tree, group: int) -> list[list[Callable]]:
    """Functions of a chunk with equal output shapes, by [bucket][bucket of the group before]."""
    group_buckets, last = buckets.groups[group - 1], group == len(buckets.groups)
    if group == 1:
        static = {"width": buckets.first_choice.widths[-1], "mlp_dim": buckets.first_choice.mlp_dims[-1]}
        restores = [lambda state: state._replace(**static)]
    else:
        restores = [functools.partial(_shrink, source=source) for source in buckets.groups[group - 2]]

    def branch(bucket: Bucket, restore: Callable) -> Callable:
        def run(rows):
            state, choice = rows
            out = forward_group(model, params, restore(state), bucket.bound(choice), group)
            if last:
                return LastGroupOutput(forward_head(model, params, out), out.tokens.token_of_patch)
            return _pad(out, group_buckets[-1])

        return run

    return [[branch(bucket, restore) for restore in restores] for bucket in group_buckets]


def _shrink(state: GroupState, source: Bucket) -> GroupState:
    """Cuts a padded state to the sizes of the bucket that its images needed before."""
    width, mlp_dim = source.widths[-1], source.mlp_dims[-1]
    tokens = resize_slots(state.tokens, source.tokens[-1])
    tokens = tokens._replace(features=tokens.features[:, :, :width])
    return state._replace(
        tokens=tokens, width=BoundedSize(state.width, width), mlp_dim=BoundedSize(state.mlp_dim, mlp_dim)
    )


def _pad(state: GroupState, bucket: Bucket) -> GroupState:
    """Pads a state to the shapes of the group's largest bucket, which every branch returns."""
    extra_tokens = bucket.tokens[-1] - state.tokens.features.shape[1]
    extra_channels = bucket.widths[-1] - state.tokens.features.shape[2]
    tokens = resize_slots(state.tokens, bucket.tokens[-1])
    tokens = tokens._replace(features=jnp.pad(tokens.features, ((0, 0), (0, 0), (0, extra_channels))))
    pad = lambda x: jnp.pad(x, ((0, 0), (0, extra_tokens), *[(0, 0)] * (x.ndim - 2)))
    signals = jax.tree.map(pad, state.signals)
    return GroupState(tokens, signals, size_value(state.width), size_value(state.mlp_dim), state.early_logits)


def map_chunks(
    branches: list[list[Callable | None]], bucket: jax.Array, source: jax.Array, rows: Tree, chunk: int
) -> tuple[Tree, jax.Array]:
    """Runs every image of a batch in a branch that covers its bucket and its source.

    Args:
      branches: `branches[bucket][source]` is a function of a chunk; None where no image can come
        from that source.
      bucket: int32 [B], index of the bucket that an image needs.
      source: int32 [B], index of the bucket that it needed in the group before.
      rows: input of the branches; leaves [B, ...].
      chunk: images that share a bucket, at most.

    Returns:
      The results in the order of the input, and the index of the bucket that each image ran in,
      int32 [B].
    """
    batch, sources = bucket.shape[0], len(branches[0])
    flat = [branch for row in branches for branch in row]
    present = [branch for branch in flat if branch is not None]
    branch_index = jnp.asarray(np.cumsum([branch is not None for branch in flat]) - 1, jnp.int32)

    def run(bucket, source, rows):
        largest = bucket.max()
        return (
            jax.lax.switch(branch_index[largest * sources + source.max()], present, rows),
            jnp.full(bucket.shape, largest, jnp.int32),
        )

    chunks = -(-batch // chunk)
    if chunks == 1:
        return run(bucket, source, rows)
    size = -(-batch // chunks)
    order = jnp.argsort(bucket * sources + source).astype(jnp.int32)
    # Whole chunks are filled with copies of the cheapest image, in front, where they cost least.
    missing = chunks * size - batch
    padded = jnp.concatenate([jnp.broadcast_to(order[:1], (missing,)), order])
    split = lambda x: x[padded].reshape(chunks, size, *x.shape[1:])
    results = jax.lax.map(lambda xs: run(*xs), jax.tree.map(split, (bucket, source, rows)))
    inverse = missing + jnp.argsort(order)
    return jax.tree.map(lambda x: x.reshape(chunks * size, *x.shape[2:])[inverse], results)
