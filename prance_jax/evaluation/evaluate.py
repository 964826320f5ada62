"""Measures accuracy and cost of a network for each image of a fixed set."""

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
from prance_jax.evaluation.average_precision import mean_average_precision
from prance_jax.models.forward import forward_adaptive
from prance_jax.models.reduction import ScheduledReduction, forward_reduced, scheduled_macs
from prance_jax.models.vit import ViT
from prance_jax.selector.policies import DecisionPolicy
from prance_jax.spec.macs import count_parameters, macs
from prance_jax.spec.model_spec import ModelSpec
from prance_jax.spec.token_counts import tokens_after_layers


class Evaluation(NamedTuple):
    """Predictions and cost of N images.

    Attributes:
      predicted: int32 [N], predicted class; [N, S, S] for segmentation; bool [N, num_classes] where
        images have several labels.
      correct: bool [N]; for segmentation float [N], share of pixels that are right; with several labels
        share of classes that are right.
      macs: float32 [N], multiply-accumulates.
      tokens_left: float32 [N], tokens after the last layer over the original ones.
      tokens_mean: float32 [N], the same, averaged over layers.
      parameters: float32 [N], parameters in use.
      mean_ap: mean average precision where images have several labels, else None.
    """

    predicted: np.ndarray
    correct: np.ndarray
    macs: np.ndarray
    tokens_left: np.ndarray
    tokens_mean: np.ndarray
    parameters: np.ndarray
    mean_ap: float | None = None

    @property
    def top1(self) -> float:
        """Mean of `correct`."""
        return float(self.correct.mean())

    @property
    def score(self) -> float:
        """Mean average precision where images have several labels, else `top1`."""
        return self.top1 if self.mean_ap is None else self.mean_ap


def changed_images(predicted: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Returns bool [N]: images whose predicted class, or any of whose labels, differs.

    Args:
      predicted: as in `Evaluation`.
      reference: the same of another network.
    """
    return (predicted != reference).reshape(len(predicted), -1).any(axis=1)


@functools.lru_cache(maxsize=None)
def compile_forward(
    spec: ModelSpec,
    policy: DecisionPolicy | ScheduledReduction | PredictorConfig,
    decision_cost: int = 0,
    mesh: Mesh | None = None,
) -> Callable:
    """Compiles a function that predicts a batch and counts the cost of each image.

    Args:
      spec: sizes of the network.
      policy: decision policy; or a `ScheduledReduction` or `PredictorConfig`, which run on the
        largest structure.
      decision_cost: MACs of one decision of the selector.
      mesh: devices over which images are divided; results are whole on each. None for one device.

    Returns:
      (params, policy_params, images, key) -> dict of [B] arrays: the fields of `Evaluation` without
      `correct` and `mean_ap`; with several labels per image also the logits.
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
            decide = policy.decide(policy_params, key)
            out = forward_adaptive(model, params, images, policy.first_choice, decide)
            structure, logits = out.structure, out.logits
            cost, tokens_after = macs(spec, structure, decision_cost), tokens_after_layers(spec, structure)
        mean = sum(jnp.asarray(count, jnp.float32) for count in tokens_after) / len(tokens_after)
        answers = {"predicted": jnp.argmax(logits, axis=-1)}
        if spec.multi_label:
            answers = {"predicted": logits > 0, "logits": logits}
        values = {
            "macs": cost.total,
            "tokens_left": jnp.asarray(tokens_after[-1], jnp.float32) / spec.tokens,
            "tokens_mean": mean / spec.tokens,
            "parameters": count_parameters(spec, structure),
        }
        # A static structure costs the same for every image; its exact integers may exceed int32.
        per_image = {
            name: jnp.broadcast_to(
                jnp.asarray(float(value) if isinstance(value, int) else value, jnp.float32), images.shape[:1]
            )
            for name, value in values.items()
        }
        return replicate_in_jit(mesh, {**answers, **per_image})

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
    """Evaluates every image of a split exactly once.

    The last batch is padded; results of the padding are dropped.

    Args:
      spec: sizes of the network.
      policy: decision policy, `ScheduledReduction` or `PredictorConfig`.
      params: parameters of the network.
      policy_params: parameters of the decision policy; () where it has none.
      split: images and labels.
      batch: images that run at once.
      decision_cost: MACs of one decision of the selector.
      key: random key for stochastic policies; None is a fixed key.
      mesh: devices that share each batch; every host gets all results. None for one device.
    """
    run = compile_forward(spec, policy, decision_cost, mesh)
    params, policy_params = replicate(mesh, (params, policy_params))
    key = jax.random.key(0) if key is None else key
    pieces, total = [], len(split.labels)
    for number, start in enumerate(range(0, total, batch)):
        images = shard_batch(mesh, (batch, *split.images.shape[1:]), functools.partial(_rows, split, start))
        batch_key = replicate(mesh, jax.random.fold_in(key, number))
        out = jax.device_get(run(params, policy_params, images, batch_key))
        pieces.append({name: value[: total - start] for name, value in out.items()})
    joined = {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}
    correct, mean_ap = joined["predicted"] == split.labels, None
    if spec.multi_label:
        mean_ap = mean_average_precision(split.labels, joined.pop("logits"))
    correct = correct if correct.ndim == 1 else correct.reshape(total, -1).mean(axis=1)
    return Evaluation(correct=correct, mean_ap=mean_ap, **joined)


def _rows(split: Split, start: int, first: int, last: int) -> np.ndarray:
    """Returns the images start + first .. start + last - 1, zeros after the end of the split."""
    images = split.images[start + first : start + last]
    return np.pad(images, [(0, last - first - len(images))] + [(0, 0)] * 3)
