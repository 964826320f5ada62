"""Finds the images of a split that can be used, and reports the others."""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np

from prance_jax.core.errors import UserError
from prance_jax.data.images.decode import join_problems, read_all
from prance_jax.data.images.records import Records

_log = logging.getLogger(__name__)


def usable_images(
    records: Records, load: Callable[[int, bytes], None], on_bad_image: str, threads: int
) -> tuple[np.ndarray, np.ndarray]:
    """Reads all images of a split and returns the numbers and labels of those that can be used.

    A warning counts the images that are left out, another names the classes without an image.

    Args:
      records: the split.
      load: decodes an image, given its number and bytes; it may raise BadImage.
      on_bad_image: 'error' or 'skip'.
      threads: number of threads.

    Returns:
      Numbers int [M], ascending, and labels int32 [M] or [M, classes].

    Raises:
      UserError: an image cannot be used and `on_bad_image` is 'error', or none can be used.
    """
    # Records whose labels are known only after reading have one label per image.
    labels = np.zeros((len(records), *np.shape(records.labels)[1:]), np.int32)

    def read(index: int) -> None:
        data, labels[index] = records.get(index)
        load(index, data)

    reasons = read_all(len(records), read, threads)
    problems = join_problems([f"{records.name(index)} ({reason})" for index, reason in reasons.items()])
    if reasons and on_bad_image == "error":
        raise UserError(
            f"{records.location}: {len(reasons)} of {len(records)} images cannot be used: {problems}; repair "
            "or remove them, or set data.images.on_bad_image to 'skip'"
        )
    if len(reasons) == len(records):
        raise UserError(f"{records.location}: no image can be read: {problems or 'there is none'}")
    if reasons:
        _log.warning("%s: left out %d of %d: %s", records.location, len(reasons), len(records), problems)
    numbers = np.delete(np.arange(len(records)), list(reasons))
    warn_of_missing_classes(records, labels[numbers])
    return numbers, labels[numbers]


def warn_of_missing_classes(records: Records, labels: np.ndarray) -> None:
    """Warns of the classes without an image.

    Args:
      records: the split.
      labels: int32 [M] or [M, classes], of the images that are used.
    """
    counts = labels.sum(axis=0) if labels.ndim == 2 else np.bincount(labels, minlength=len(records.classes))
    if missing := [name for name, count in zip(records.classes, counts) if not count]:
        text = "%s has no image of %d of %d classes: %s"
        _log.warning(text, records.location, len(missing), len(counts), join_problems(missing))
