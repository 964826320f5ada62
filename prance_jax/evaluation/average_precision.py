"""Measures networks for images with several labels: mean average precision (mAP)."""

from __future__ import annotations

import numpy as np


def average_precision(labels: np.ndarray, scores: np.ndarray) -> float:
    """Returns the average precision of one class, sum over thresholds of (R_n - R_{n-1}) x P_n.

    Images of the same score are taken in together.

    Args:
      labels: bool or 0/1 [N], at least one of them positive.
      scores: float [N]; higher means more likely.
    """
    order = np.argsort(-scores, kind="stable")
    positives = np.cumsum(np.asarray(labels, np.float64)[order])
    thresholds = np.append(np.flatnonzero(np.diff(scores[order])), len(order) - 1)
    precision = positives[thresholds] / (thresholds + 1)
    recall = positives[thresholds] / positives[-1]
    return float(np.sum(np.diff(recall, prepend=0) * precision))


def mean_average_precision(labels: np.ndarray, scores: np.ndarray) -> float:
    """Returns the mean of the average precision over the classes that some image has.

    Args:
      labels: bool or 0/1 [N, K].
      scores: float [N, K].

    Returns:
      A share; NaN where no image has a label.
    """
    classes = np.flatnonzero(np.asarray(labels).any(axis=0))
    if not len(classes):
        return float("nan")
    return float(np.mean([average_precision(labels[:, k], scores[:, k]) for k in classes]))
