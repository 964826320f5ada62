"""From a budget to the price that meets it, and the accuracy contract.

A selector that was trained for every budget sees the price of compute. Calibration runs it at a ladder of prices on
held-out images; between the rungs the logarithm of the price is interpolated. The contract picks the cheapest rung whose
disagreement with the full network is bounded with confidence (Clopper and Pearson 1934, one-sided).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from prance_jax.errors import UserError
from prance_jax.inputs import check_budget


@dataclass(frozen=True)
class Ladder:
    """What calibration measured, rung by rung from dear to cheap compute.

    prices: falling. macs_kept: share of the full network's MACs, never falling. disagreements: of `images` calibration
    images, how many were classified differently from the full network.
    """

    prices: tuple[float, ...]
    macs_kept: tuple[float, ...]
    disagreements: tuple[int, ...]
    images: int

    def __post_init__(self):
        if not self.prices or not len(self.prices) == len(self.macs_kept) == len(self.disagreements):
            raise UserError("ladder: needs as many prices as shares and disagreements, at least one")
        if any(a <= b for a, b in zip(self.prices, self.prices[1:])):
            raise UserError(f"ladder: prices must fall, not {self.prices}")

    @property
    def range(self) -> tuple[float, float]:
        """Smallest and largest budget that was calibrated, shares of the full network's MACs."""
        return self.macs_kept[0], self.macs_kept[-1]

    def price(self, budget: jax.Array | float) -> jax.Array:
        """The price at which mean MACs are `budget` (a share); scalar or [B], traced or not.

        Raises UserError for a number outside the calibrated range; a traced one is clipped to it.
        """
        check_budget(budget, *self.range)
        shares = jnp.asarray(np.maximum.accumulate(self.macs_kept), jnp.float32)
        return jnp.exp(
            jnp.interp(jnp.asarray(budget, jnp.float32), shares, jnp.log(jnp.asarray(self.prices)))
        )

    def contract(self, eps: float, delta: float) -> float:
        """The cheapest calibrated budget whose disagreement with the full network is at most `eps`, with confidence
        1 - delta. Every rung is tested at delta / rungs (Bonferroni), since the cheapest of several is chosen.

        Raises UserError where no rung meets it, with the bound that can be had.
        """
        if not (0 < eps < 1 and 0 < delta < 1):
            raise UserError(f"contract: eps={eps} and delta={delta} must lie between 0 and 1")
        bounds = [upper_bound(found, self.images, delta / len(self.prices)) for found in self.disagreements]
        for share, bound in zip(self.macs_kept, bounds):
            if bound <= eps:
                return share
        raise UserError(
            f"no budget disagrees with the full network on at most {eps:.2%} of images with confidence {1 - delta:.0%}; "
            f"the best bound is {min(bounds):.2%}: allow more, or calibrate on more than {self.images} images"
        )


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
