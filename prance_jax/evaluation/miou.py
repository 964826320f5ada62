"""How well pixels are classified: intersection over union."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Overlap(NamedTuple):
    """miou: mean over classes of intersection over union, on all pixels together. accuracy: of pixels. each: per class."""

    miou: float
    accuracy: float
    each: np.ndarray


def confusion_matrix(truth: np.ndarray, found: np.ndarray, classes: int) -> np.ndarray:
    """int64 [classes, classes]: pixels by true class (rows) and predicted one."""
    pairs = classes * truth.reshape(-1).astype(np.int64) + found.reshape(-1)
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def from_confusion(confusion: np.ndarray) -> Overlap:
    """Classes that neither occur nor are predicted do not count in the mean."""
    hit = np.diag(confusion).astype(float)
    union = confusion.sum(0) + confusion.sum(1) - np.diag(confusion)
    each = np.where(union > 0, hit / np.maximum(union, 1), np.nan)
    return Overlap(float(np.nanmean(each)), float(hit.sum() / confusion.sum()), each)
