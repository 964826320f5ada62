"""The executor for learned token predictors, with its own token count for each image.

For SPViT and DynamicViT. It works as the executor of PRANCE's decisions. At every predictor the
batch is sorted by the tokens that remain and split into chunks. Each chunk runs at the smallest
*token bucket*, a static number of tokens, that holds its images. Inside, every image keeps its own
tokens by masks. So the result is that of masked execution, whatever else is in the batch.
"""

from __future__ import annotations

import functools
from typing import Any, Callable, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from prance_jax.adaptive.choose_buckets import cheapest_cuts
from prance_jax.adaptive.executor import LastGroupOutput, map_chunks
from prance_jax.baselines.predictor_config import PredictorConfig
from prance_jax.baselines.predictor_vit import PredictedKeep, PredictorViT
from prance_jax.core.errors import UserError
from prance_jax.core.sizes import BoundedSize
from prance_jax.spec.model_spec import ModelSpec
from prance_jax.tokens.token_set import TokenSet, resize_slots

Tree = Any
TokenBuckets = tuple[tuple[int, ...], ...]
"""Rising token counts per predictor, CLS and package token counted; the last holds any image."""


class PredictorAdaptiveOutput(NamedTuple):
    """Result of the executor, in the order of the input.

    Attributes:
      logits: float32 [B, num_classes].
      token_of_patch: int32 [B, P], see `TokenSet`.
      tokens_after: tokens after each predictor, int32 [B] each.
      bucket_used: index of the token bucket that an image's chunk ran in, int32 [B] per predictor.
    """

    logits: jax.Array
    token_of_patch: jax.Array
    tokens_after: tuple[jax.Array, ...]
    bucket_used: tuple[jax.Array, ...]


def serve_predictor(
    spec: ModelSpec,
    predictor: PredictorConfig,
    token_buckets: TokenBuckets,
    params: Tree,
    images: jax.Array,
    chunk: int = 16,
) -> PredictorAdaptiveOutput:
    """Classifies images, each with its own tokens, in the time of their token buckets.

    Pure; to be jitted by the caller with everything but `params` and `images` static.

    Args:
      spec: the network.
      predictor: the predictors, with `by_threshold`; without it every image has the same number of
        tokens, and no token buckets are needed.
      token_buckets: token buckets of every predictor.
      params: parameters of `PredictorViT`.
      images: float [B, S, S, channels], normalised as in training.
      chunk: images that share a token bucket, at most.

    Returns:
      Logits, tokens and token buckets.

    Raises:
      UserError: the token buckets do not fit the predictors.
    """
    _check(spec, predictor, token_buckets)
    model, batch, tokens_after, bucket_used = PredictorViT(spec, predictor), images.shape[0], [], []
    call = lambda *arguments, method: model.apply({"params": params}, *arguments, method=method)
    state, source = call(images, method="forward_first_group"), jnp.zeros(batch, jnp.int32)
    for index, bounds in enumerate(token_buckets):
        chosen = call(state, index, method="predict_keep")
        bucket = jnp.searchsorted(jnp.asarray(bounds, jnp.int32), chosen.num_keep).astype(jnp.int32)
        branches = _branches(call, token_buckets, index)
        state, used = map_chunks(branches, bucket, source, (state, chosen), chunk)
        tokens_after.append(chosen.num_keep)
        bucket_used.append(used)
        source = bucket
    return PredictorAdaptiveOutput(
        state.logits, state.token_of_patch, tuple(tokens_after), tuple(bucket_used)
    )


def _branches(call: Callable, token_buckets: TokenBuckets, index: int) -> list[list[Callable | None]]:
    """Functions of a chunk with equal output shapes, by [token bucket][the one before]."""
    bounds, last = token_buckets[index], index + 1 == len(token_buckets)

    def branch(bound: int, source: int | None) -> Callable:
        def run(rows: tuple[TokenSet, PredictedKeep]):
            tokens, chosen = rows
            if source is not None:
                tokens = resize_slots(tokens, source)
            keep = chosen.keep[:, : tokens.features.shape[1] - 1]
            chosen = PredictedKeep(keep, BoundedSize(chosen.num_keep, bound), chosen.drops)
            out = call(tokens, chosen, index, method="forward_group")
            if last:
                return LastGroupOutput(call(out, method="forward_head"), out.token_of_patch)
            return resize_slots(out, bounds[-1])

        return run

    if index == 0:
        return [[branch(bound, None)] for bound in bounds]
    # No image has more tokens than arrived, so it needs no bucket far above its source.
    smaller_bounds = (0, *bounds)
    return [
        [branch(bound, source) if smaller < source else None for source in token_buckets[index - 1]]
        for smaller, bound in zip(smaller_bounds, bounds)
    ]


@functools.lru_cache(maxsize=None)
def _compiled_counts(spec: ModelSpec, predictor: PredictorConfig) -> Callable:
    """Compiled (params, images) -> tokens after each predictor, int32 [B, predictors]."""

    def run(params, images):
        tokens_after = PredictorViT(spec, predictor).apply({"params": params}, images).tokens_after
        return jnp.stack([tokens_after[layer] for layer in predictor.layers], axis=1)

    return jax.jit(run)


def collect_token_counts(
    spec: ModelSpec, predictor: PredictorConfig, params: Tree, images: np.ndarray, batch: int = 250
) -> np.ndarray:
    """Counts the tokens that each image keeps at every predictor.

    Args:
      spec: the network.
      predictor: the predictors, with `by_threshold`.
      params: parameters of `PredictorViT`.
      images: float [N, S, S, channels], normalised as in training.
      batch: images per call.

    Returns:
      int32 [N, predictors].
    """
    run, counts = _compiled_counts(spec, predictor), []
    for start in range(0, len(images), batch):
        rows = images[start : start + batch]
        padded = np.pad(rows, [(0, batch - len(rows))] + [(0, 0)] * 3)
        counts.append(np.asarray(run(params, padded))[: len(rows)])
    return np.concatenate(counts)


def choose_token_buckets(
    spec: ModelSpec, tokens_after: np.ndarray, num_buckets: int = 3, multiple: int = 4
) -> TokenBuckets:
    """Chooses the token buckets that cost the fewest MACs on calibration images.

    Args:
      spec: the network.
      tokens_after: int [N, predictors], tokens after each predictor, see `collect_token_counts`.
      num_buckets: token buckets per predictor, at most, beside the one that holds everything.
      multiple: token counts are rounded up to a multiple of it, which suits the hardware.

    Returns:
      The token buckets.
    """
    width, inner, mlp_dim = spec.space.max_width, spec.space.attention_width, spec.space.max_mlp_dim
    token_buckets = []
    for counts in np.asarray(tokens_after).T:
        rounded = np.minimum(-(-counts // multiple) * multiple, spec.tokens)
        bounds, images = np.unique(rounded, return_counts=True)
        cost = bounds * (4.0 * width * inner + 2.0 * width * mlp_dim) + 2.0 * bounds**2 * inner
        cuts = cheapest_cuts(cost, images, num_buckets)
        token_buckets.append(tuple(sorted({*(int(bounds[cut]) for cut in cuts), spec.tokens})))
    return tuple(token_buckets)


def _check(spec: ModelSpec, predictor: PredictorConfig, token_buckets: TokenBuckets) -> None:
    if not predictor.by_threshold:
        raise UserError(
            "these predictors keep as many tokens of every image: run PredictorViT itself, or set "
            "by_threshold=True"
        )
    if len(token_buckets) != len(predictor.layers) or not all(
        bounds and bounds[-1] >= spec.tokens for bounds in token_buckets
    ):
        raise UserError(
            f"token_buckets={token_buckets}: {len(predictor.layers)} predictors need numbers of tokens each, "
            f"the last one {spec.tokens} at least"
        )
    if any(list(bounds) != sorted(set(bounds)) for bounds in token_buckets):
        raise UserError(f"token_buckets={token_buckets} must rise")
