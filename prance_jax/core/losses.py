"""Losses and accuracy on logits, and optimizers in 32 bits.

Losses not named otherwise return the mean over the batch, float32.

Logits are [B, K] for images, with labels int32 [B]; or [B, S, S, K] for pixels, with labels int32
[B, S, S]. For pixels the mean is over all pixels of the batch. Integer labels [B, K] of zeros and ones
mean that an image has several labels: each class is then a binary decision by the sigmoid of its logit,
and the mean is over classes as well. Float labels [B, K] are class probabilities of mixed images.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax


def has_several_labels(logits: jax.Array, labels: jax.Array) -> bool:
    """Returns whether labels are zeros and ones for every class, so that an image may have several.

    Args:
      logits: [B, K].
      labels: of any kind, see the docstring of this module.
    """
    return labels.ndim == logits.ndim and not jnp.issubdtype(labels.dtype, jnp.floating)


def cross_entropy(logits: jax.Array, labels: jax.Array, smoothing: float = 0.0) -> jax.Array:
    """Returns the softmax cross-entropy; with several labels per image the binary cross-entropy.

    Args:
      logits: [B, K].
      labels: int32 [B]; class probabilities float32 [B, K] where images were mixed; or int32 [B, K] of
        zeros and ones, several labels per image.
      smoothing: probability that is spread evenly over all classes (over yes and no of each class).
    """
    if has_several_labels(logits, labels):
        targets = labels * (1 - smoothing) + smoothing / 2
        return optax.sigmoid_binary_cross_entropy(logits, targets).mean()
    are_indices = labels.ndim < logits.ndim
    targets = optax.smooth_labels(
        jax.nn.one_hot(labels, logits.shape[-1], dtype=jnp.float32) if are_indices else labels, smoothing
    )
    return optax.softmax_cross_entropy(logits, targets).mean()


def kl_divergence(logits: jax.Array, teacher: jax.Array) -> jax.Array:
    """Returns KL(teacher || student) of the softmax predictions.

    Args:
      logits: the student's logits [B, K].
      teacher: the teacher's logits [B, K]; they get no gradient.
    """
    teacher = jax.lax.stop_gradient(teacher)
    log_teacher, log_student = jax.nn.log_softmax(teacher), jax.nn.log_softmax(logits)
    return jnp.sum(jnp.exp(log_teacher) * (log_teacher - log_student), axis=-1).mean()


def binary_kl_divergence(logits: jax.Array, teacher: jax.Array) -> jax.Array:
    """Returns KL(teacher || student) of the sigmoid prediction of each class, shaped like the logits.

    Args:
      logits: the student's logits [B, K].
      teacher: the teacher's logits [B, K]; they get no gradient.
    """
    teacher = jax.lax.stop_gradient(teacher)
    probability = jax.nn.sigmoid(teacher)
    entropy = optax.sigmoid_binary_cross_entropy(teacher, probability)
    return optax.sigmoid_binary_cross_entropy(logits, probability) - entropy


def distillation_loss(
    logits: jax.Array, labels: jax.Array, teacher: jax.Array, share: float, smoothing: float = 0.0
) -> jax.Array:
    """Returns (1 - share) x cross-entropy with the labels + share x KL divergence from a teacher.

    Args:
      logits: the student's logits [B, K].
      labels: as for `cross_entropy`.
      teacher: the teacher's logits [B, K]; they get no gradient.
      share: weight of the teacher, from 0 to 1.
      smoothing: label smoothing, as for `cross_entropy`.
    """
    label_loss = cross_entropy(logits, labels, smoothing)
    if has_several_labels(logits, labels):
        return (1 - share) * label_loss + share * binary_kl_divergence(logits, teacher).mean()
    return (1 - share) * label_loss + share * kl_divergence(logits, teacher)


def distillation_loss_per_image(
    logits: jax.Array, labels: jax.Array, teacher: jax.Array, share: float, smoothing: float = 0.0
) -> jax.Array:
    """Returns `distillation_loss` of every image, float32 [B].

    Args:
      logits: as for `distillation_loss`.
      labels: as for `distillation_loss`.
      teacher: as for `distillation_loss`.
      share: as for `distillation_loss`.
      smoothing: as for `distillation_loss`.
    """
    one = lambda logits, labels, teacher: distillation_loss(
        logits[None], labels[None], teacher[None], share, smoothing
    )
    return jax.vmap(one)(logits, labels, teacher)


def correct_predictions(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Returns whether predictions are right: bool [B], [B, S, S] of pixels, [B, K] of several labels.

    Args:
      logits: [B, K]; with several labels a class is predicted where its logit is above 0.
      labels: as for `cross_entropy`; of class probabilities the highest counts as the label.
    """
    if has_several_labels(logits, labels):
        return (logits > 0) == (labels > 0)
    labels = labels if labels.ndim < logits.ndim else jnp.argmax(labels, -1)
    return jnp.argmax(logits, -1) == labels


def accuracy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Returns the share of correct predictions (`correct_predictions`).

    Args:
      logits: [B, K].
      labels: as for `cross_entropy`.
    """
    return correct_predictions(logits, labels).mean(dtype=jnp.float32)


def in_32_bits(transform: optax.GradientTransformation) -> optax.GradientTransformation:
    """Returns the same optimizer; under `jax_enable_x64` optax would compute schedules and moments in 64 bits.

    The state has the same types and the updates the same values with and without the flag.

    Args:
      transform: an optimizer; parameters and gradients are float32.
    """

    def init(params):
        with jax.enable_x64(False):
            return transform.init(params)

    def update(updates, state, params=None):
        with jax.enable_x64(False):
            return transform.update(updates, state, params)

    return optax.GradientTransformation(init, update)
