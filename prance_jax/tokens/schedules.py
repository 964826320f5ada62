"""How many tokens are left after each layer: schedules of the training-free methods.

A schedule is hashable (it selects a compiled program) and gives, for a depth and a number of tokens, the tokens left
after the reduction in each layer. What a schedule asks beyond the possible is cut: CLS and one more token stay, and
methods that merge pairs remove at most half of the tokens in a layer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from prance_jax.core.errors import UserError


class Schedule(Protocol):
    """left(depth, tokens): tokens (CLS counted) after each of `depth` layers, when `tokens` arrive at the first."""

    def tokens_after(self, depth: int, tokens: int) -> tuple[int, ...]: ...


@dataclass(frozen=True)
class Removed:
    """Tokens removed in each layer, as a list; layers beyond it remove none. At most half of the tokens go at once."""

    amounts: tuple[int, ...]

    def __post_init__(self):
        if any(not isinstance(amount, int) or amount < 0 for amount in self.amounts):
            raise UserError(f"schedule: amounts={self.amounts} must be whole numbers of 0 or more")

    def tokens_after(self, depth: int, tokens: int) -> tuple[int, ...]:
        counts = []
        for layer in range(depth):
            amount = self.amounts[layer] if layer < len(self.amounts) else 0
            tokens -= min(amount, (tokens - 1) // 2)
            counts.append(tokens)
        return tuple(counts)


@dataclass(frozen=True)
class Constant:
    """ToMe's r: as many tokens in every layer. inflect: -1 removes from 2 r in the first layer down to 0 in the last,
    1 the other way round, 0 evenly."""

    amount: int
    inflect: float = 0.0

    def __post_init__(self):
        if not isinstance(self.amount, int) or self.amount < 0 or not -1 <= self.inflect <= 1:
            raise UserError(
                f"schedule: r={self.amount} must be 0 or more, inflect={self.inflect} from -1 to 1"
            )

    def tokens_after(self, depth: int, tokens: int) -> tuple[int, ...]:
        lowest = self.amount * (1 - self.inflect)
        step = 2 * self.amount * self.inflect / max(depth - 1, 1)
        return Removed(tuple(int(lowest + step * layer) for layer in range(depth))).tokens_after(
            depth, tokens
        )


@dataclass(frozen=True)
class Sites:
    """PPT's: `amount` tokens at each of the layers `sites` (counted from 0)."""

    amount: int
    sites: tuple[int, ...] = (3, 6, 9)

    def tokens_after(self, depth: int, tokens: int) -> tuple[int, ...]:
        _check_sites(self.sites, depth)
        return Removed(tuple(self.amount * (layer in self.sites) for layer in range(depth))).tokens_after(
            depth, tokens
        )


@dataclass(frozen=True)
class KeepRate:
    """EViT's: of the patches, ceil(rate x patches) stay at each of `sites`. fused: one more token holds the others."""

    rate: float
    sites: tuple[int, ...] = (3, 6, 9)
    fused: bool = True

    def __post_init__(self):
        if not 0 < self.rate <= 1:
            raise UserError(f"schedule: keep rate {self.rate} must be above 0 and up to 1")

    def tokens_after(self, depth: int, tokens: int) -> tuple[int, ...]:
        _check_sites(self.sites, depth)
        counts = []
        for layer in range(depth):
            if layer in self.sites:
                kept = math.ceil(self.rate * (tokens - 1))
                tokens = min(tokens, 1 + kept + self.fused)
            counts.append(tokens)
        return tuple(counts)


@dataclass(frozen=True)
class Kept:
    """Tokens left after each layer, as a list (DiffRate's schedules); never rising."""

    counts: tuple[int, ...]

    def tokens_after(self, depth: int, tokens: int) -> tuple[int, ...]:
        counts = self.counts
        if len(counts) != depth or min(counts) < 1 or list(counts) != sorted(counts, reverse=True):
            raise UserError(f"schedule: {counts} must be {depth} counts of 1 or more that never rise")
        return tuple(min(count, tokens) for count in counts)


def _check_sites(sites: tuple[int, ...], depth: int) -> None:
    if any(not 0 <= site < depth for site in sites):
        raise UserError(f"schedule: sites={sites} must be layers from 0 to {depth - 1}")
