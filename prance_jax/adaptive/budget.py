"""From a budget to the cost weight that meets it, and the certified budget.

A selector that was trained for every budget receives the cost weight as an input. Calibration runs
it at several cost weights on held-out images, the calibration points. Between them cost weights are
interpolated.

The certified budget is the cheapest one whose disagreement with the full network (largest
structure, all tokens) is bounded with confidence, by the one-sided bound of Clopper and Pearson
(1934).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from prance_jax.core.checks import check_budget
from prance_jax.core.errors import UserError
from prance_jax.selector.cost_weight import cost_weight_from_asinh, cost_weight_to_asinh


@dataclass(frozen=True)
class BudgetTable:
    """What was measured at each calibration point, from the largest cost weight to the smallest.

    Attributes:
      cost_weights: falling.
      macs_kept: mean MACs as a share of the dense MACs, rising.
      disagreements: number of calibration images whose predicted class, or any of whose labels, differs
        from the full network's.
      images: number of calibration images.
    """

    cost_weights: tuple[float, ...]
    macs_kept: tuple[float, ...]
    disagreements: tuple[int, ...]
    images: int

    def __post_init__(self):
        if not self.cost_weights or not len(self.cost_weights) == len(self.macs_kept) == len(
            self.disagreements
        ):
            raise UserError(
                f"budget table: needs as many cost weights as shares and disagreements, at least one; found "
                f"{len(self.cost_weights)}, {len(self.macs_kept)} and {len(self.disagreements)}"
            )
        if any(a <= b for a, b in zip(self.cost_weights, self.cost_weights[1:])):
            raise UserError(f"budget table: cost weights must fall, not {self.cost_weights}")
        if any(a >= b for a, b in zip(self.macs_kept, self.macs_kept[1:])):
            raise UserError(f"budget table: shares of the MACs must rise, not {self.macs_kept}")

    @property
    def range(self) -> tuple[float, float]:
        """Smallest and largest calibrated budget, shares of the dense MACs."""
        return self.macs_kept[0], self.macs_kept[-1]

    def cost_weight(self, budget: jax.Array | float) -> jax.Array:
        """Looks up the cost weight at which the selector spends a given budget.

        Args:
          budget: share of the dense MACs; float or float32 [B].

        Returns:
          Cost weight, shaped like `budget`, interpolated between calibration points.

        Raises:
          UserError: `budget` is outside `range`; under `jit` it is clipped instead.
        """
        check_budget(budget, *self.range)
        shares = jnp.asarray(self.macs_kept, jnp.float32)
        return cost_weight_from_asinh(
            jnp.interp(
                jnp.asarray(budget, jnp.float32),
                shares,
                cost_weight_to_asinh(jnp.asarray(self.cost_weights, jnp.float32)),
            )
        )

    def certified_budget(self, eps: float, delta: float) -> float:
        """Returns the cheapest budget at which predictions rarely change, with confidence.

        Calibration points are tested from the largest budget down, each at level `delta`, until the
        first one fails. The order is fixed beforehand, so the number of tests needs no correction
        (fixed sequence testing).

        Args:
          eps: largest rate of images whose predicted class differs from the full network's, in (0,
            1).
          delta: largest probability that the returned budget has a larger rate, in (0, 1).

        Returns:
          The budget, a share of the dense MACs.

        Raises:
          UserError: the largest budget fails already (the message has the bound that can be had),
            or `eps` or `delta` is outside (0, 1).

        Reference: Learn then Test, Angelopoulos et al. 2021, arXiv 2110.01052, fixed sequence
        testing.
        """
        if not (0 < eps < 1 and 0 < delta < 1):
            raise UserError(f"certified budget: eps={eps} and delta={delta} must lie between 0 and 1")
        bounds = [clopper_pearson_upper_bound(count, self.images, delta) for count in self.disagreements]
        cheapest = None
        for share, bound in zip(reversed(self.macs_kept), reversed(bounds)):
            if bound > eps:
                break
            cheapest = share
        if cheapest is None:
            raise UserError(
                f"no budget disagrees with the full network on at most {eps:.2%} of images with confidence "
                f"{1 - delta:.0%}; the bound of the largest one is {bounds[-1]:.2%}: raise eps or delta, or "
                f"calibrate on more than {self.images} images"
            )
        return cheapest


def clopper_pearson_upper_bound(count: int, images: int, delta: float) -> float:
    """Computes the one-sided upper confidence bound of a rate (Clopper and Pearson 1934).

    The bound is the rate p at which a binomial variable is `count` or less with probability
    `delta`; with count = 0 it is 1 - delta ** (1 / images). It is found by bisection.

    Args:
      count: images with the event.
      images: images in all.
      delta: 1 - confidence, in (0, 1).

    Returns:
      The bound, in [0, 1].
    """
    if count >= images:
        return 1.0
    low, high = count / images, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _at_most(count, images, middle) > delta else (low, middle)
    return high


def _at_most(count: int, images: int, rate: float) -> float:
    """P[Binomial(images, rate) <= count]."""
    if rate <= 0.0 or rate >= 1.0:
        return float(rate <= 0.0)
    logs = [
        math.lgamma(images + 1)
        - math.lgamma(k + 1)
        - math.lgamma(images - k + 1)
        + k * math.log(rate)
        + (images - k) * math.log1p(-rate)
        for k in range(count + 1)
    ]
    largest = max(logs)
    return math.exp(largest) * sum(math.exp(log - largest) for log in logs)
