"""Learned selectors with a number of tokens for each image, in one compiled program that saves the time.

As the executor of PRANCE's decisions: at every selector the batch is put in order of the tokens that are left, cut into
chunks, and each chunk runs at the smallest of a few static numbers, *levels*, that holds its images. Inside, every image
keeps its own tokens by masks, so what comes out is what masked execution gives, whatever else is in the batch.
"""

from __future__ import annotations

import functools
from typing import Any, Callable, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from prance_jax.adaptive.choose_buckets import cheapest_cuts
from prance_jax.adaptive.executor import map_chunks
from prance_jax.baselines.predictor_config import PredictorConfig
from prance_jax.baselines.predictor_vit import PredictedKeep, PredictorViT
from prance_jax.core.errors import UserError
from prance_jax.core.sizes import BoundedSize
from prance_jax.spec.model_spec import ModelSpec
from prance_jax.tokens.token_set import TokenSet, resized

Tree = Any
# For every selector rising numbers of tokens, CLS and the package counted; the last holds any image.
Levels = tuple[tuple[int, ...], ...]


class ServedTokens(NamedTuple):
    """In input order: logits float32 [B, K]; owner int32 [B, P], see `TokenSet`; per selector int32 [B]: tokens that are left,
    and the level that the image's chunk ran at."""

    logits: jax.Array
    token_of_patch: jax.Array
    tokens_after: tuple[jax.Array, ...]
    bucket_used: tuple[jax.Array, ...]


class _Finished(NamedTuple):
    logits: jax.Array
    token_of_patch: jax.Array


def serve_predictor(
    spec: ModelSpec,
    predictor: PredictorConfig,
    token_buckets: Levels,
    params: Tree,
    images: jax.Array,
    chunk: int = 16,
) -> ServedTokens:
    """Runs a batch [B, S, S, channels]; pure, to be jitted by the caller with all but `params` and `images` static.

    selective: with `by_threshold`; one without has the same number for every image and needs no levels. chunk: images that
    share a level, at most. Raises UserError for levels that do not fit the selectors.
    """
    _check(spec, predictor, token_buckets)
    model, batch, tokens_after, bucket_used = PredictorViT(spec, predictor), images.shape[0], [], []
    call = lambda *arguments, method: model.apply({"params": params}, *arguments, method=method)
    state, arrived = call(images, method="forward_first_group"), jnp.zeros(batch, jnp.int32)
    for index, own in enumerate(token_buckets):
        chosen = call(state, index, method="predict_keep")
        level = jnp.searchsorted(jnp.asarray(own), chosen.num_keep).astype(jnp.int32)
        branches = _branches(call, token_buckets, index)
        state, ran = map_chunks(branches, level, arrived, (state, chosen), chunk)
        tokens_after.append(chosen.num_keep)
        bucket_used.append(ran)
        arrived = level
    return ServedTokens(state.logits, state.token_of_patch, tuple(tokens_after), tuple(bucket_used))


def _branches(call: Callable, token_buckets: Levels, index: int) -> list[list[Callable | None]]:
    """[level][level that its images come from]: functions of a chunk, with equal shapes out."""
    own, last = token_buckets[index], index + 1 == len(token_buckets)

    def branch(bound: int, slots: int | None) -> Callable:
        def run(part: tuple[TokenSet, PredictedKeep]):
            tokens, chosen = part
            if slots is not None:
                tokens = resized(tokens, slots)
            keep = chosen.keep[:, : tokens.features.shape[1] - 1]
            chosen = PredictedKeep(keep, BoundedSize(chosen.num_keep, bound), chosen.drops)
            out = call(tokens, chosen, index, method="forward_group")
            if last:
                return _Finished(call(out, method="forward_head"), out.token_of_patch)
            return resized(out, own[-1])

        return run

    if index == 0:
        return [[branch(bound, None)] for bound in own]
    # No image is left with more tokens than came, so it needs no level far above the one that it comes from.
    below = (0, *own)
    return [
        [branch(bound, slots) if smaller < slots else None for slots in token_buckets[index - 1]]
        for smaller, bound in zip(below, own)
    ]


@functools.lru_cache(maxsize=None)
def _seen(spec: ModelSpec, predictor: PredictorConfig) -> Callable:
    def run(params, images):
        tokens_after = PredictorViT(spec, predictor).apply({"params": params}, images).tokens_after
        return jnp.stack([tokens_after[site] for site in predictor.layers], axis=1)

    return jax.jit(run)


def collect_token_counts(
    spec: ModelSpec, predictor: PredictorConfig, params: Tree, images: np.ndarray, batch: int = 250
) -> np.ndarray:
    """int [N, sites]: tokens that selectors leave of each of the images [N, S, S, channels]."""
    run, parts = _seen(spec, predictor), []
    for start in range(0, len(images), batch):
        part = images[start : start + batch]
        padded = np.pad(part, [(0, batch - len(part))] + [(0, 0)] * 3)
        parts.append(np.asarray(run(params, padded))[: len(part)])
    return np.concatenate(parts)


def choose_token_buckets(
    spec: ModelSpec, tokens_after: np.ndarray, number: int = 3, multiple: int = 4
) -> Levels:
    """Levels at which images cost the fewest multiply-accumulates, by dynamic programming.

    left: int [N, sites], tokens left on calibration images. number: levels a selector, at most, beside the one that holds
    everything. multiple: to which they are rounded up (what hardware likes).
    """
    width, inner, mlp_dims = spec.space.max_width, spec.space.attention_width, spec.space.max_mlp_dim
    token_buckets = []
    for counts in np.asarray(tokens_after).T:
        rounded = np.minimum(-(-counts // multiple) * multiple, spec.tokens)
        each, images = np.unique(rounded, return_counts=True)
        cost = each * (4.0 * width * inner + 2.0 * width * mlp_dims) + 2.0 * each**2 * inner
        cuts = cheapest_cuts(cost, images, number)
        token_buckets.append(tuple(sorted({*(int(each[cut]) for cut in cuts), spec.tokens})))
    return tuple(token_buckets)


def _check(spec: ModelSpec, predictor: PredictorConfig, token_buckets: Levels) -> None:
    if not predictor.by_threshold:
        raise UserError(
            "these selectors keep as many tokens of every image: run SelectiveViT itself, or by_threshold=True"
        )
    if len(token_buckets) != len(predictor.layers) or not all(
        own and own[-1] >= spec.tokens for own in token_buckets
    ):
        raise UserError(
            f"levels={token_buckets}: {len(predictor.layers)} selectors need numbers of tokens each, the last one "
            f"{spec.tokens} at least"
        )
    if any(list(own) != sorted(set(own)) for own in token_buckets):
        raise UserError(f"levels={token_buckets} must rise")
