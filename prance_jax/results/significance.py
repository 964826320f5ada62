"""Two networks on the same images: is the difference more than chance?

Images that both classify correctly, or both wrongly, do not tell which network is better. If
neither were better, each other image would be as likely to be won as lost.

Reference: McNemar 1947, "Note on the sampling error of the difference between correlated
proportions or percentages", Psychometrika 12; in its exact form, a binomial test with probability
1/2.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from prance_jax.results.names import display_name

if TYPE_CHECKING:
    from prance_jax.results.rows import Row


def won_and_lost(correct: np.ndarray, reference: np.ndarray) -> tuple[int, int]:
    """Counts the images on which two networks differ.

    Args:
      correct: bool [N], whether the network is right on each image.
      reference: bool [N], the same of the network compared with.

    Returns:
      Images that only the network classifies correctly, and images that only the reference does.
    """
    is_right, reference_right = np.asarray(correct, bool), np.asarray(reference, bool)
    return int((is_right & ~reference_right).sum()), int((reference_right & ~is_right).sum())


def p_value(won: int, lost: int) -> float:
    """Returns the probability of a difference at least this large if neither were better.

    Args:
      won: images that only the first network classifies correctly.
      lost: images that only the second network classifies correctly.
    """
    from scipy.stats import binomtest

    return float(binomtest(won, won + lost).pvalue) if won + lost else 1.0


def paired_remarks(rows: Sequence[Row]) -> list[str]:
    """Writes a line for each PRANCE method against the dense network, seed by seed."""
    lines = []
    for method in dict.fromkeys(row.method for row in rows if row.method.startswith("prance_")):
        pairs = [(row.won, row.lost) for row in rows if row.method == method and row.won is not None]
        if pairs:
            won, lost = (", ".join(str(pair[side]) for pair in pairs) for side in (0, 1))
            chance = ", ".join(f"{p_value(*pair):.2g}" for pair in pairs)
            lines.append(
                f"{display_name(method)}, image by image against the dense network: won {won}; lost {lost}; "
                f"McNemar's exact p {chance}"
            )
    return lines
