"""Measures how well pixels are classified: mean intersection over union (mIoU)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Overlap(NamedTuple):
    """Accuracy of a segmenter, over all pixels of a set together.

    Attributes:
      miou: intersection over union, mean over classes, in [0, 1].
      accuracy: share of pixels that are right.
      each: float64 [classes], intersection over union of each class; NaN for a class that neither
        occurs nor is predicted.
    """

    miou: float
    accuracy: float
    each: np.ndarray


def confusion_matrix(labels: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
    """Counts pixels by true class (row) and predicted class (column).

    Args:
      labels: int [N, S, S], the true classes.
      predicted: int [N, S, S].
      num_classes: number of classes.

    Returns:
      int64 [num_classes, num_classes].
    """
    pairs = num_classes * labels.reshape(-1).astype(np.int64) + predicted.reshape(-1)
    return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


def overlap_from_confusion(confusion: np.ndarray) -> Overlap:
    """Computes the overlap from a confusion matrix.

    Classes that neither occur nor are predicted do not count in the mean.
    """
    intersection = np.diag(confusion).astype(float)
    union = confusion.sum(0) + confusion.sum(1) - np.diag(confusion)
    each = np.where(union > 0, intersection / np.maximum(union, 1), np.nan)
    return Overlap(float(np.nanmean(each)), float(intersection.sum() / confusion.sum()), each)
