"""Token reduction consistency of MCTF.

A network is fine-tuned under its schedule and, in the same step and with the same weights, under a
milder one. The class token under the milder schedule is the target of the other.

Reference: MCTF, Lee et al. 2024, arXiv 2403.10030, section 3.4.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from prance_jax.config.comparison import ConsistencyConfig
from prance_jax.config.stages import FinetuneConfig
from prance_jax.core import losses
from prance_jax.models.reduction import ScheduledReduction
from prance_jax.models.token_steps import LayerReduction
from prance_jax.models.vit import ViT
from prance_jax.spec.model_spec import ModelSpec


def milder_reduction(
    reduction: ScheduledReduction, spec: ModelSpec, most: float, batch: int, key: jax.Array
) -> LayerReduction:
    """Draws a milder reduction for each image.

    Args:
      reduction: the schedule.
      spec: the network.
      most: largest share of the schedule's removed tokens that the milder reduction removes.
      batch: number of images.
      key: random key.

    Returns:
      The reduction, with int32 [batch] tokens after each layer.
    """
    share = jax.random.uniform(key, (batch,), maxval=most, dtype=jnp.float32)
    tokens_after = tuple(
        spec.tokens - jnp.floor(share * (spec.tokens - count)).astype(jnp.int32)
        for count in reduction.tokens_after(spec)
    )
    return LayerReduction(reduction.method, tokens_after, reduction.proportional)


def class_token_distance(
    class_token: jax.Array, milder: jax.Array, logits: jax.Array, labels: jax.Array, confidence: float
) -> jax.Array:
    """Returns the mean squared distance of class tokens from those under the milder schedule.

    Only images count whose label has a probability above `confidence` under the schedule.

    Args:
      class_token: [B, C], under the schedule.
      milder: [B, C], under the milder schedule; it gets no gradient.
      logits: [B, K], under the schedule.
      labels: int32 [B], or the mixed labels [B, K].
      confidence: probability, from 0 to 1.

    Returns:
      Float32 scalar.
    """
    are_indices = labels.ndim < logits.ndim
    truth = (
        jax.nn.one_hot(labels, logits.shape[-1], dtype=jnp.float32)
        if are_indices
        else (labels > 0).astype(jnp.float32)
    )
    is_confident = jnp.sum(jax.nn.softmax(logits) * truth, axis=-1) > confidence
    distance = jnp.mean(jnp.square(class_token - jax.lax.stop_gradient(milder)), axis=-1)
    return jnp.sum(jnp.where(is_confident, distance, 0.0)) / jnp.maximum(jnp.sum(is_confident), 1)


def consistent_loss(
    model: ViT,
    params: Any,
    images: jax.Array,
    labels: jax.Array,
    teacher_logits: jax.Array,
    reduction: ScheduledReduction,
    config: FinetuneConfig,
    consistency: ConsistencyConfig,
    key: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Returns the loss under both schedules with the distance of their class tokens.

    Args:
      model: the network.
      params: its parameters.
      images: float [B, S, S, channels].
      labels: int32 [B], or mixed labels [B, K].
      teacher_logits: [B, K].
      reduction: the schedule.
      config: settings of the fine-tuning.
      consistency: settings of the consistency.
      key: random key of the milder schedule.

    Returns:
      The loss, and the logits [B, K] under the schedule.
    """
    run = lambda layer_reduction: model.apply(
        {"params": params}, images, model.spec.largest, layer_reduction, method="forward_reduced"
    )
    output = run(reduction.layer_reduction(model.spec))
    milder = run(milder_reduction(reduction, model.spec, consistency.most, len(images), key))
    distance = class_token_distance(
        output.class_token, milder.class_token, output.logits, labels, consistency.confidence
    )
    distillation_losses = (
        losses.distillation_loss(logits, labels, teacher_logits, config.distillation, config.label_smoothing)
        for logits in (output.logits, milder.logits)
    )
    return sum(distillation_losses) + consistency.weight * distance, output.logits
