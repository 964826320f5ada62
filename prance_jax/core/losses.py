"""Losses on logits; all return the mean over the batch, float32.

Logits [B, K] are of images; [B, S, S, K], with labels int32 [B, S, S], of pixels, and the mean is over all of them.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax


def cross_entropy(logits: jax.Array, labels: jax.Array, smoothing: float = 0.0) -> jax.Array:
    """logits [B, K]; labels int32 [B], or their distribution [B, K] where images were mixed; smoothing: probability
    spread evenly over all classes."""
    hard = labels.ndim < logits.ndim
    targets = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1]) if hard else labels, smoothing)
    return optax.softmax_cross_entropy(logits, targets).mean()


def kl_divergence(logits: jax.Array, teacher: jax.Array) -> jax.Array:
    """KL(teacher || student) of softmax predictions, both [B, K]; the teacher gets no gradient."""
    teacher = jax.lax.stop_gradient(teacher)
    log_teacher, log_student = jax.nn.log_softmax(teacher), jax.nn.log_softmax(logits)
    return jnp.sum(jnp.exp(log_teacher) * (log_teacher - log_student), axis=-1).mean()


def distillation_loss(
    logits: jax.Array, labels: jax.Array, teacher: jax.Array, share: float, smoothing: float = 0.0
) -> jax.Array:
    """Cross-entropy with the labels and, as `share` of the whole, the divergence from the teacher's predictions."""
    hard = cross_entropy(logits, labels, smoothing)
    return (1 - share) * hard + share * kl_divergence(logits, teacher)


def accuracy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Share of right predictions; labels as for `cross_entropy`, of mixed ones the strongest counts."""
    labels = labels if labels.ndim < logits.ndim else jnp.argmax(labels, -1)
    return (jnp.argmax(logits, -1) == labels).mean()
