"""Average precision agrees with scikit-learn and with a calculation by hand."""

import numpy as np
import pytest

from prance_jax.evaluation.average_precision import average_precision, mean_average_precision


def test_by_hand():
    """Positives at ranks 1 and 3 of 4: (1/1 + 2/3) / 2. All scores equal: the share of positives."""
    assert average_precision(np.array([1, 0, 1, 0]), np.array([0.9, 0.8, 0.7, 0.6])) == pytest.approx(5 / 6)
    assert average_precision(np.array([1, 0, 0, 0]), np.zeros(4)) == pytest.approx(0.25)


def test_classes_without_a_positive_do_not_count():
    labels = np.array([[1, 0], [0, 0], [1, 0]])
    scores = np.array([[0.9, 0.3], [0.8, 0.2], [0.1, 0.1]])
    assert mean_average_precision(labels, scores) == pytest.approx(5 / 6)
    assert np.isnan(mean_average_precision(np.zeros((3, 2)), scores))


@pytest.mark.parametrize("digits", [1, 8])
def test_like_scikit_learn(digits):
    """With one digit most scores are equal to others."""
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(digits)
    labels, scores = rng.random((60, 7)) < 0.3, rng.normal(size=(60, 7)).round(digits)
    expected = metrics.average_precision_score(labels, scores, average="macro")
    assert mean_average_precision(labels, scores) == pytest.approx(expected, abs=1e-12)
