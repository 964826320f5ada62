"""Two networks on the same images: is the difference more than chance?

What both get right or both get wrong says nothing about which is better. Of the other images, were neither better, each
would be as likely to be won as lost (McNemar 1947, "Note on the sampling error of the difference between correlated
proportions or percentages", Psychometrika 12; in its exact form: a binomial test with 1/2).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from prance_jax.results.rows import Row


def won_and_lost(correct: np.ndarray, reference: np.ndarray) -> tuple[int, int]:
    """Images that are right here and wrong in the reference, and the other way round. Both: [N], whether right."""
    here, there = np.asarray(correct, bool), np.asarray(reference, bool)
    return int((here & ~there).sum()), int((there & ~here).sum())


def p_value(won: int, lost: int) -> float:
    """The probability of a difference at least so large, either way, if neither were better."""
    from scipy.stats import binomtest

    return float(binomtest(won, won + lost).pvalue) if won + lost else 1.0


def paired_remarks(rows: Sequence[Row]) -> list[str]:
    """A line for each PRANCE row against the dense network, seed by seed."""
    lines = []
    for method in dict.fromkeys(row.method for row in rows if row.method.startswith("prance_")):
        pairs = [(row.won, row.lost) for row in rows if row.method == method and row.won is not None]
        if pairs:
            won, lost = (", ".join(str(pair[side]) for pair in pairs) for side in (0, 1))
            chance = ", ".join(f"{p_value(*pair):.2g}" for pair in pairs)
            lines.append(
                f"{method}, image by image against dense: won {won}; lost {lost}; McNemar's exact p {chance}"
            )
    return lines
