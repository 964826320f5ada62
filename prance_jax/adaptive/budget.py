"""From a budget to the price that meets it, and the accuracy contract.

A selector that was trained for every budget sees the price of compute. Calibration runs it at a ladder of prices on
held-out images; between the rungs prices are interpolated. The contract picks the cheapest rung whose
disagreement with the full network is bounded with confidence (Clopper and Pearson 1934, one-sided).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from prance_jax.core.checks import check_budget
from prance_jax.core.errors import UserError
from prance_jax.selector.cost_weight import cost_weight_at, cost_weight_level


@dataclass(frozen=True)
class BudgetTable:
    """What calibration measured, rung by rung from dear to cheap compute.

    prices: falling. macs_kept: share of the full network's MACs, rising. disagreements: of `images` calibration
    images, how many were classified differently from the full network.
    """

    cost_weights: tuple[float, ...]
    macs_kept: tuple[float, ...]
    disagreements: tuple[int, ...]
    images: int

    def __post_init__(self):
        if not self.cost_weights or not len(self.cost_weights) == len(self.macs_kept) == len(
            self.disagreements
        ):
            raise UserError("ladder: needs as many prices as shares and disagreements, at least one")
        if any(a <= b for a, b in zip(self.cost_weights, self.cost_weights[1:])):
            raise UserError(f"ladder: prices must fall, not {self.cost_weights}")
        if any(a >= b for a, b in zip(self.macs_kept, self.macs_kept[1:])):
            raise UserError(f"ladder: shares must rise, not {self.macs_kept}")

    @property
    def range(self) -> tuple[float, float]:
        """Smallest and largest budget that was calibrated, shares of the full network's MACs."""
        return self.macs_kept[0], self.macs_kept[-1]

    def cost_weight(self, budget: jax.Array | float) -> jax.Array:
        """The price at which mean MACs are `budget` (a share); scalar or [B], traced or not.

        Raises UserError for a number outside the calibrated range; a traced one is clipped to it.
        """
        check_budget(budget, *self.range)
        shares = jnp.asarray(self.macs_kept, jnp.float32)
        return cost_weight_at(
            jnp.interp(
                jnp.asarray(budget, jnp.float32), shares, cost_weight_level(jnp.asarray(self.cost_weights))
            )
        )

    def certified_budget(self, eps: float, delta: float) -> float:
        """The cheapest calibrated budget whose disagreement with the full network is at most `eps`, with confidence
        1 - delta.

        Rungs are tested from dear to cheap, each at `delta`, up to the first that fails: an order that is fixed
        beforehand needs no correction for the number of tests (Angelopoulos et al. 2021, arXiv 2110.01052, fixed
        sequence testing). Raises UserError where not even the first one passes, with the bound that can be had.
        """
        if not (0 < eps < 1 and 0 < delta < 1):
            raise UserError(f"contract: eps={eps} and delta={delta} must lie between 0 and 1")
        bounds = [upper_bound(found, self.images, delta) for found in self.disagreements]
        chosen = None
        for share, bound in zip(reversed(self.macs_kept), reversed(bounds)):
            if bound > eps:
                break
            chosen = share
        if chosen is None:
            raise UserError(
                f"no budget disagrees with the full network on at most {eps:.2%} of images with confidence "
                f"{1 - delta:.0%}; the bound of the largest one is {bounds[-1]:.2%}: allow more, or calibrate on more "
                f"than {self.images} images"
            )
        return chosen


def upper_bound(found: int, images: int, delta: float) -> float:
    """The rate p for which `found` or fewer of `images` have probability delta: rates above it are refuted.

    By bisection on the binomial distribution; with found = 0 it is 1 - delta ** (1 / images).
    """
    if found >= images:
        return 1.0
    low, high = found / images, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _at_most(found, images, middle) > delta else (low, middle)
    return high


def _at_most(found: int, images: int, rate: float) -> float:
    """P[Binomial(images, rate) <= found]."""
    if rate <= 0.0 or rate >= 1.0:
        return float(rate <= 0.0)
    logs = [
        math.lgamma(images + 1)
        - math.lgamma(k + 1)
        - math.lgamma(images - k + 1)
        + k * math.log(rate)
        + (images - k) * math.log1p(-rate)
        for k in range(found + 1)
    ]
    top = max(logs)
    return math.exp(top) * sum(math.exp(one - top) for one in logs)
