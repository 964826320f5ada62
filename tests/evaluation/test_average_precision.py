"""Mean average precision, by hand."""

import numpy as np
import pytest

from prance_jax.evaluation.average_precision import mean_average_precision


@pytest.mark.parametrize(
    "labels, scores, expected",
    [
        # Positives at ranks 1 and 3 of 4: (1/1 + 2/3) / 2. All scores equal: the share of positives.
        ([[1], [0], [1], [0]], [[0.9], [0.8], [0.7], [0.6]], 5 / 6),
        ([[1], [0], [0], [0]], [[0.0], [0.0], [0.0], [0.0]], 0.25),
        # The mean of both; a third class, which no image has, does not count.
        (
            [[1, 1, 0], [0, 0, 0], [1, 0, 0], [0, 0, 0]],
            [[0.9, 0, 1], [0.8, 0, 2], [0.7, 0, 3], [0.6, 0, 4]],
            13 / 24,
        ),
    ],
)
def test_by_hand(labels, scores, expected):
    assert mean_average_precision(np.array(labels), np.array(scores, np.float32)) == pytest.approx(expected)


def test_without_any_label_there_is_none():
    assert np.isnan(mean_average_precision(np.zeros((3, 2)), np.ones((3, 2))))
