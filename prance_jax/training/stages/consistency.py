"""Token reduction consistency (MCTF, Lee et al. 2024, arXiv 2403.10030, section 3.4): a network is tuned under its schedule and, in
the same step and with the same weights, under a milder one, whose class token shows the other where to go."""

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
    """A number of tokens for each image and layer, int32 [batch]: of what the schedule removes a share between 0 and `most`,
    drawn for each image."""
    share = jax.random.uniform(key, (batch,), maxval=most)
    tokens_after = tuple(
        spec.tokens - jnp.floor(share * (spec.tokens - count)).astype(jnp.int32)
        for count in reduction.tokens_after(spec)
    )
    return LayerReduction(reduction.method, tokens_after, reduction.proportional)


def class_token_distance(
    own: jax.Array, milder: jax.Array, logits: jax.Array, labels: jax.Array, confidence: float
) -> jax.Array:
    """Mean squared distance of class tokens [B, C] from those under the milder schedule, which get no gradient; over the
    images of whose label (or mixture, [B, K]) the network under its schedule is sure by more than `confidence`."""
    hard = labels.ndim < logits.ndim
    truth = jax.nn.one_hot(labels, logits.shape[-1]) if hard else (labels > 0).astype(jnp.float32)
    sure = jnp.sum(jax.nn.softmax(logits) * truth, axis=-1) > confidence
    apart = jnp.mean(jnp.square(own - jax.lax.stop_gradient(milder)), axis=-1)
    return jnp.sum(jnp.where(sure, apart, 0.0)) / jnp.maximum(jnp.sum(sure), 1)


def consistent_loss(
    model: ViT,
    params: Any,
    images: jax.Array,
    labels: jax.Array,
    wanted: jax.Array,
    reduction: ScheduledReduction,
    config: FinetuneConfig,
    consistency: ConsistencyConfig,
    key: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """The loss under both schedules and how far they are apart; and the logits under the schedule itself. wanted: logits of
    the teacher."""
    run = lambda reducing: model.apply(
        {"params": params}, images, model.spec.largest, reducing, method="forward_reduced"
    )
    own = run(reduction.layer_reduction(model.spec))
    other = run(milder_reduction(reduction, model.spec, consistency.most, len(images), key))
    apart = class_token_distance(
        own.class_token, other.class_token, own.logits, labels, consistency.confidence
    )
    distillation_loss = (
        losses.distillation_loss(logits, labels, wanted, config.distillation, config.label_smoothing)
        for logits in (own.logits, other.logits)
    )
    return sum(distillation_loss) + consistency.weight * apart, own.logits
