"""Two networks on the same images or seeds: how far apart are they, and is the difference more than chance?

Images that both classify correctly, or both wrongly, do not tell which network is better. If
neither were better, each other image would be as likely to be won as lost.

Reference: McNemar 1947, "Note on the sampling error of the difference between correlated
proportions or percentages", Psychometrika 12; in its exact form, a binomial test with probability
1/2.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from prance_jax.results.names import display_name

if TYPE_CHECKING:
    from prance_jax.results.rows import Row

CASCADE = "prance_cascade"
"""Begins the keys of PRANCE's rows where the network is a cascade."""
_BASELINES = ("best_static", "random_policy", "dense_tuned")
_CASCADE_BASELINES = ("best_static_finetuned", "random_routing", "confidence", "dense_tuned")


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


def is_cascade(rows: Sequence[Row]) -> bool:
    """Returns whether the rows are those of a cascade."""
    return any(row.method.startswith(CASCADE) for row in rows)


def reference_name(rows: Sequence[Row]) -> str:
    """Returns in words which row the others are compared with: in `top1_change`, `won` and `lost`."""
    return "the dense network, fine-tuned" if is_cascade(rows) else "the dense network"


def paired_remarks(rows: Sequence[Row]) -> list[str]:
    """Writes a line for each PRANCE method and reference, seed by seed.

    The reference is the dense network; of a cascade also the best static structure at the same budget.
    """
    lines = []
    references = [(reference_name(rows), "won", "lost")]
    if is_cascade(rows):
        references.append(("the best static structure, fine-tuned", "won_static", "lost_static"))
    for method in _prance_methods(rows):
        for reference, *names in references:
            pairs = [tuple(getattr(row, name) for name in names) for row in rows if row.method == method]
            pairs = [pair for pair in pairs if None not in pair]
            if pairs:
                won, lost = (", ".join(str(pair[side]) for pair in pairs) for side in (0, 1))
                chance = ", ".join(f"{p_value(*pair):.2g}" for pair in pairs)
                lines.append(
                    f"{display_name(method)}, image by image against {reference}: won {won}; lost {lost}; "
                    f"McNemar's exact p {chance}"
                )
    return lines


def margin_remarks(rows: Sequence[Row]) -> list[str]:
    """Writes how far each PRANCE method is above its baselines; differences are within a seed.

    The baselines are those of its token mode or budget, where there are such.
    """
    top1 = {(row.method, row.seed): row.top1 for row in rows if row.top1 is not None}
    methods, lines = {row.method for row in rows}, []
    for method in _prance_methods(rows):
        of_cascade = method.startswith(CASCADE)
        ending = method.removeprefix(CASCADE if of_cascade else "prance")
        parts = []
        for baseline in _CASCADE_BASELINES if of_cascade else _BASELINES:
            name = baseline + ending if baseline + ending in methods else baseline
            points = [
                100 * (value - top1[name, seed])
                for (row_method, seed), value in top1.items()
                if row_method == method and (name, seed) in top1
            ]
            if points:
                spread = f" ±{statistics.stdev(points):.2f}" if len(points) > 1 else ""
                parts.append(f"{statistics.fmean(points):+.2f}{spread} points over {display_name(name)}")
        if parts:
            lines.append(f"{display_name(method)}: {'; '.join(parts)}; seed by seed")
    return lines


def _prance_methods(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row.method for row in rows if row.method.startswith("prance_")))
