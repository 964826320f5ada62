"""Accuracy and cost of a rule, of a token reduction or of learned selectors, on a fixed set of images, per image."""

from __future__ import annotations

import functools
from typing import Any, Callable, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from prance_jax.baselines.predictor_config import Selective
from prance_jax.baselines.predictor_vit import SelectiveViT
from prance_jax.core.sharding import divide, keep_rows, keep_whole, replicate
from prance_jax.data.source import Split
from prance_jax.models.forward import walk
from prance_jax.models.reduction import Reduction, reduced, reduced_macs
from prance_jax.models.vit import ViT
from prance_jax.selector.policies import Rule
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
def forward(
    spec: ModelSpec, rule: Rule | Reduction | Selective, decision_cost: int = 0, mesh: Mesh | None = None
) -> Callable:
    """Compiled (params, variables, images, key) -> dict of [B] arrays: prediction and cost of every image.

    A `Reduction` or `Selective` runs on the largest structure. mesh: images are divided over its devices, the figures
    whole on each.
    """
    model = ViT(spec)

    def run(params, variables, images, key):
        images = keep_rows(mesh, images)
        if isinstance(rule, Selective):
            out = SelectiveViT(spec, rule).apply({"params": params}, images)
            structure, logits, left = spec.largest, out.logits, out.left
            cost = rule.macs(spec, left)
        elif isinstance(rule, Reduction):
            structure, left = spec.largest, rule.left(spec)
            cost = reduced_macs(spec, structure, rule)
            logits = reduced(model, params, images, structure, rule).logits
        else:
            outcome = walk(model, params, images, rule.first, rule.decide(variables, key))
            structure, logits = outcome.structure, outcome.logits
            cost, left = macs(spec, structure, decision_cost), token_counts(spec, structure).mlp
        mean = sum(jnp.asarray(count, jnp.float32) for count in left) / len(left)
        predicted = jnp.argmax(logits, axis=-1)
        figures = {
            "macs": cost.total,
            "tokens_left": jnp.asarray(left[-1], jnp.float32) / spec.tokens,
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
        return keep_whole(mesh, {"predicted": predicted, **each})

    return jax.jit(run)


def evaluate(
    spec: ModelSpec,
    rule: Rule | Reduction | Selective,
    params: Any,
    variables: Any,
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
    run = forward(spec, rule, decision_cost, mesh)
    params, variables = replicate(mesh, (params, variables))
    key = jax.random.key(0) if key is None else key
    pieces, total = [], len(split.labels)
    for number, start in enumerate(range(0, total, batch)):
        images = divide(mesh, (batch, *split.images.shape[1:]), functools.partial(_rows, split, start))
        own = replicate(mesh, jax.random.fold_in(key, number))
        out = jax.device_get(run(params, variables, images, own))
        pieces.append({name: value[: total - start] for name, value in out.items()})
    joined = {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}
    right = joined["predicted"] == split.labels
    return Evaluation(correct=right if right.ndim == 1 else right.mean(axis=(1, 2)), **joined)


def _rows(split: Split, start: int, first: int, last: int) -> np.ndarray:
    """Images start + first ... start + last, zeros where there are no more."""
    images = split.images[start + first : start + last]
    return np.pad(images, [(0, last - first - len(images))] + [(0, 0)] * 3)
