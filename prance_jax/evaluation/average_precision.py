"""Measures networks for images with several labels: mean average precision (mAP)."""

from __future__ import annotations

import numpy as np


def mean_average_precision(labels: np.ndarray, scores: np.ndarray) -> float:
    """Returns the mean of the average precision over the classes that some image has, by scikit-learn.

    Args:
      labels: bool or 0/1 [N, K].
      scores: float [N, K]; higher means more likely.

    Returns:
      A share; NaN where no image has a label.
    """
    from sklearn.metrics import average_precision_score

    has_images = np.asarray(labels).any(axis=0)
    if not has_images.any():
        return float("nan")
    return float(average_precision_score(labels[:, has_images], scores[:, has_images], average="macro"))
