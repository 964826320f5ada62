"""Times every bucket on this device: the table behind latency-aware rewards and budgets."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prance_jax.adaptive.bucket_latency import LatencyTable
from prance_jax.adaptive.buckets import Bucket, Buckets
from prance_jax.evaluation.timing import time_interleaved
from prance_jax.models.forward import forward_first_group, forward_group, forward_head
from prance_jax.models.outputs import GroupState
from prance_jax.models.vit import ViT
from prance_jax.spec.model_spec import ModelSpec
from prance_jax.spec.structure import GroupChoice
from prance_jax.tokens.token_set import initial_tokens, keep_rate_for


def measure_buckets(
    buckets: Buckets, params: Any, device: str, batch: int = 16, repeats: int = 9
) -> LatencyTable:
    """Measures milliseconds per image of each group in each bucket.

    Images come from each bucket of the group before. Groups run compact at the sizes of the bucket.

    Args:
      buckets: to be timed.
      params: of the network; their values do not matter.
      device: name of the machine in the table.
      batch: images that run together.
      repeats: interleaved repeats, of which medians are taken.
    """
    spec, model = buckets.spec, ViT(buckets.spec)
    images = jnp.ones((batch, *spec.image_shape), jnp.float32)
    programs = {
        "dense": jax.jit(lambda p: model.apply({"params": p}, images, spec.largest)),
        "first": jax.jit(
            lambda p: forward_first_group(model, p, images, buckets.first_choice).tokens.features
        ),
    }
    before = [(buckets.first_choice.widths[-1], buckets.first_choice.mlp_dims[-1], spec.tokens)]
    last = len(buckets.groups)
    for group, group_buckets in enumerate(buckets.groups, start=1):
        for index, bucket in enumerate(group_buckets):
            for source, (width, mlp_dim, tokens) in enumerate(before):
                state = _state(batch, width, mlp_dim, tokens, spec)
                choice = _choice(bucket, tokens)

                def run(p, state=state, choice=choice, group=group):
                    out = forward_group(model, p, state, choice, group)
                    return forward_head(model, p, out) if group == last else out.tokens.features

                programs[group, index, source] = jax.jit(run)
        before = [(bucket.widths[-1], bucket.mlp_dims[-1], bucket.tokens[-1]) for bucket in group_buckets]
    calls = {name: lambda run=run: run(params) for name, run in programs.items()}
    times = {
        name: 1e3 * float(np.median(seconds)) / batch
        for name, seconds in time_interleaved(calls, repeats).items()
    }
    groups, sources = [], 1
    for group, group_buckets in enumerate(buckets.groups, start=1):
        groups.append(
            tuple(
                tuple(times[group, index, source] for source in range(sources))
                for index in range(len(group_buckets))
            )
        )
        sources = len(group_buckets)
    return LatencyTable(buckets, times["first"], tuple(groups), times["dense"], device)


def _state(batch: int, width: int, mlp_dim: int, tokens: int, spec: ModelSpec) -> GroupState:
    """The state before a group, of images that arrive with these sizes."""
    features = jnp.ones((batch, tokens, width), spec.dtype)
    token_set = initial_tokens(features)._replace(token_of_patch=jnp.ones((batch, spec.patches), jnp.int32))
    if spec.method.tracks_sizes:
        token_set = token_set._replace(size=jnp.ones((batch, tokens), jnp.float32))
    return GroupState(token_set, None, width, mlp_dim, None)


def _choice(bucket: Bucket, arriving: int) -> GroupChoice:
    """The sizes of a bucket as a static choice, for images that arrive with `arriving` tokens."""
    rates = []
    for tokens_after in bucket.tokens:
        tokens_after = min(tokens_after, arriving)
        rates.append(keep_rate_for(tokens_after, arriving))
        arriving = tokens_after
    return GroupChoice(bucket.widths, bucket.mlp_dims, tuple(rates))
