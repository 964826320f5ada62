"""Losses for images with several labels, against numbers by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from prance_jax.core import losses

LOGITS = jnp.array([[0.0, np.log(3.0)], [-np.log(3.0), np.log(3.0)]])  # probabilities 1/2, 3/4; 1/4, 3/4
LABELS = jnp.array([[1, 0], [0, 1]], jnp.int32)


def test_binary_cross_entropy_is_the_mean_over_images_and_classes():
    expected = -np.log([1 / 2, 1 / 4, 3 / 4, 3 / 4]).mean()
    assert losses.cross_entropy(LOGITS, LABELS) == pytest.approx(expected, rel=1e-6)
    assert losses.cross_entropy(LOGITS, LABELS.astype(bool)) == pytest.approx(expected, rel=1e-6)
    # Smoothing 0.2 makes the targets 0.9 and 0.1.
    right, wrong = np.log([1 / 2, 1 / 4, 3 / 4, 3 / 4]), np.log([1 / 2, 3 / 4, 1 / 4, 1 / 4])
    smoothed = -(0.9 * right + 0.1 * wrong).mean()
    assert losses.cross_entropy(LOGITS, LABELS, 0.2) == pytest.approx(smoothed, rel=1e-6)


def test_probabilities_of_mixed_images_are_no_several_labels():
    mixed = LABELS.astype(jnp.float32)
    expected = np.mean([-np.log(1 / 4), -np.log(3 / (3 + 1 / 3))])
    assert losses.cross_entropy(LOGITS, mixed) == pytest.approx(expected, rel=1e-6)


def test_distillation_is_the_kl_divergence_of_every_class():
    teacher = jnp.array([[0.0, 0.0], [0.0, 0.0]])
    # KL(1/2 || 3/4) = log 2 - (log 3) / 2 for three of four logits; the fourth agrees.
    kl_divergence = 3 / 4 * (np.log(2) - np.log(3) / 2)
    assert losses.distillation_loss(LOGITS, LABELS, teacher, 1.0) == pytest.approx(kl_divergence, rel=1e-5)
    both = losses.distillation_loss(LOGITS, LABELS, teacher, 0.5)
    label_loss = losses.cross_entropy(LOGITS, LABELS)
    assert both == pytest.approx((kl_divergence + float(label_loss)) / 2, rel=1e-5)
    assert losses.distillation_loss(LOGITS, LABELS, LOGITS, 1.0) == pytest.approx(0, abs=1e-6)


def test_accuracy_is_the_share_of_right_classes():
    logits = jnp.array([[1.0, 2.0, -1.0], [-3.0, 0.5, 2.0]])
    labels = jnp.array([[1, 1, 0], [1, 0, 1]], jnp.int32)
    assert losses.accuracy(logits, labels) == pytest.approx(4 / 6)
