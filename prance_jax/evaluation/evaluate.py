"""Accuracy and cost of a rule, of a token reduction or of learned selectors, on a fixed set of images, per image."""

from __future__ import annotations

import functools
from typing import Any, Callable, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from prance_jax.baselines.predictor_config import PredictorConfig
from prance_jax.baselines.predictor_vit import PredictorViT
from prance_jax.core.sharding import constrain_batch, replicate, replicate_in_jit, shard_batch
from prance_jax.data.source import Split
from prance_jax.models.forward import forward_adaptive
from prance_jax.models.reduction import ScheduledReduction, forward_reduced, scheduled_macs
from prance_jax.models.vit import ViT
from prance_jax.selector.policies import DecisionPolicy
from prance_jax.spec.macs import macs, parameters, token_counts
from prance_jax.spec.model_spec import ModelSpec


class Evaluation(NamedTuple):
    """Per image, [N]: prediction ([N, S, S] of pixels), whether it is right (of pixels the share that is), MACs,
    tokens left after the last group and averaged over layers (shares of the original ones), parameters used."""

    predicted: np.ndarray
    correct: np.ndarray
    macs: np.ndarray
    tokens_left: np.ndarray
    tokens_mean: np.ndarray
    parameters: np.ndarray

    @property
    def top1(self) -> float:
        return float(self.correct.mean())


@functools.lru_cache(maxsize=None)
def compile_forward(
    spec: ModelSpec,
    policy: DecisionPolicy | ScheduledReduction | PredictorConfig,
    decision_cost: int = 0,
    mesh: Mesh | None = None,
) -> Callable:
    """Compiled (params, variables, images, key) -> dict of [B] arrays: prediction and cost of every image.

    A `Reduction` or `Selective` runs on the largest structure. mesh: images are divided over its devices, the figures
    whole on each.
    """
    model = ViT(spec)

    def run(params, policy_params, images, key):
        images = constrain_batch(mesh, images)
        if isinstance(policy, PredictorConfig):
            out = PredictorViT(spec, policy).apply({"params": params}, images)
            structure, logits, tokens_after = spec.largest, out.logits, out.tokens_after
            cost = policy.macs(spec, tokens_after)
        elif isinstance(policy, ScheduledReduction):
            structure, tokens_after = spec.largest, policy.tokens_after(spec)
            cost = scheduled_macs(spec, structure, policy)
            logits = forward_reduced(model, params, images, structure, policy).logits
        else:
            outcome = forward_adaptive(
                model, params, images, policy.first_choice, policy.decide(policy_params, key)
            )
            structure, logits = outcome.structure, outcome.logits
            cost, tokens_after = macs(spec, structure, decision_cost), token_counts(spec, structure).mlp
        mean = sum(jnp.asarray(count, jnp.float32) for count in tokens_after) / len(tokens_after)
        predicted = jnp.argmax(logits, axis=-1)
        figures = {
            "macs": cost.total,
            "tokens_left": jnp.asarray(tokens_after[-1], jnp.float32) / spec.tokens,
            "tokens_mean": mean / spec.tokens,
            "parameters": parameters(spec, structure),
        }
        # A static structure costs the same for every image; its exact integers may leave int32.
        each = {
            name: jnp.broadcast_to(
                jnp.asarray(float(value) if isinstance(value, int) else value), images.shape[:1]
            )
            for name, value in figures.items()
        }
        return replicate_in_jit(mesh, {"predicted": predicted, **each})

    return jax.jit(run)


def evaluate(
    spec: ModelSpec,
    policy: DecisionPolicy | ScheduledReduction | PredictorConfig,
    params: Any,
    policy_params: Any,
    split: Split,
    *,
    batch: int,
    decision_cost: int = 0,
    key: jax.Array | None = None,
    mesh: Mesh | None = None,
) -> Evaluation:
    """Runs every image of a split exactly once; the last batch is padded and the padding is cut off.

    decision_cost: MACs of one decision of the selector. key: for rules that draw, default a fixed one. mesh: devices that
    share each batch; every host gets all figures.
    """
    run = compile_forward(spec, policy, decision_cost, mesh)
    params, policy_params = replicate(mesh, (params, policy_params))
    key = jax.random.key(0) if key is None else key
    pieces, total = [], len(split.labels)
    for number, start in enumerate(range(0, total, batch)):
        images = shard_batch(mesh, (batch, *split.images.shape[1:]), functools.partial(_rows, split, start))
        own = replicate(mesh, jax.random.fold_in(key, number))
        out = jax.device_get(run(params, policy_params, images, own))
        pieces.append({name: value[: total - start] for name, value in out.items()})
    joined = {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}
    right = joined["predicted"] == split.labels
    return Evaluation(correct=right if right.ndim == 1 else right.mean(axis=(1, 2)), **joined)


def _rows(split: Split, start: int, first: int, last: int) -> np.ndarray:
    """Images start + first ... start + last, zeros where there are no more."""
    images = split.images[start + first : start + last]
    return np.pad(images, [(0, last - first - len(images))] + [(0, 0)] * 3)
