"""Validation during training: its score, and the best one of a stage so far."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class BestScore(NamedTuple):
    """The best validation of a stage so far.

    Attributes:
      step: finished steps at the best validation, the earliest of equal ones; None before the first.
      score: its score; None before the first.
      num_worse: validations since then.
    """

    step: int | None = None
    score: float | None = None
    num_worse: int = 0

    def update(self, step: int, score: float) -> BestScore:
        """Returns the best validation after one more.

        Args:
          step: finished steps.
          score: of the network at that step; higher is better.
        """
        if self.score is None or score > self.score:
            return BestScore(step, score)
        return self._replace(num_worse=self.num_worse + 1)


def mean_score(metrics: Mapping[str, float]) -> float:
    """Returns the score of a validation: the mean of its metrics, of which higher is better."""
    return sum(metrics.values()) / len(metrics)
