"""Schedules: how many tokens stay after each layer, for methods without a learned policy.

A schedule is hashable, because it selects a compiled program. Where it asks for more than a method
can do, `TokenMethod.feasible_count` limits it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from prance_jax.core.errors import UserError


class Schedule(Protocol):
    """Gives the tokens after each layer, for a depth and a number of tokens."""

    def tokens_after(self, depth: int, tokens: int) -> tuple[int, ...]:
        """Returns the tokens after each layer, CLS included.

        Args:
          depth: number of layers.
          tokens: tokens that arrive at the first layer, CLS included.
        """
        ...


@dataclass(frozen=True)
class Removed:
    """Removes a given number of tokens in each layer, half of the tokens at most.

    Attributes:
      amounts: tokens to remove in each layer; layers beyond the end of the list remove none.
    """

    amounts: tuple[int, ...]

    def __post_init__(self):
        if any(not isinstance(amount, int) or amount < 0 for amount in self.amounts):
            raise UserError(f"schedule: amounts={self.amounts} must be whole numbers of 0 or more")

    def tokens_after(self, depth: int, tokens: int) -> tuple[int, ...]:
        """Returns the tokens after each layer.

        Args:
          depth: number of layers.
          tokens: tokens at the first layer, CLS included.
        """
        counts = []
        for layer in range(depth):
            amount = self.amounts[layer] if layer < len(self.amounts) else 0
            tokens -= min(amount, (tokens - 1) // 2)
            counts.append(tokens)
        return tuple(counts)


@dataclass(frozen=True)
class Constant:
    """Removes the same number of tokens in every layer, as ToMe does, or a linearly changing one.

    Attributes:
      amount: ToMe's r, tokens to remove in each layer; with `inflect` the mean over layers.
      inflect: -1 falls from 2 r in the first layer to 0 in the last, 1 rises, 0 is constant.
    """

    amount: int
    inflect: float = 0.0

    def __post_init__(self):
        if not isinstance(self.amount, int) or self.amount < 0 or not -1 <= self.inflect <= 1:
            raise UserError(
                f"schedule: r={self.amount} must be 0 or more, inflect={self.inflect} from -1 to 1"
            )

    def tokens_after(self, depth: int, tokens: int) -> tuple[int, ...]:
        """Returns the tokens after each layer.

        Args:
          depth: number of layers.
          tokens: tokens at the first layer, CLS included.
        """
        first = self.amount * (1 - self.inflect)
        step = 2 * self.amount * self.inflect / max(depth - 1, 1)
        amounts = tuple(int(first + step * layer) for layer in range(depth))
        return Removed(amounts).tokens_after(depth, tokens)


@dataclass(frozen=True)
class Sites:
    """Removes the same number of tokens at chosen layers, as PPT does.

    Attributes:
      amount: tokens to remove at each of them.
      sites: layers, counted from 0.
    """

    amount: int
    sites: tuple[int, ...] = (3, 6, 9)

    def tokens_after(self, depth: int, tokens: int) -> tuple[int, ...]:
        """Returns the tokens after each layer; a layer that does not exist is a UserError.

        Args:
          depth: number of layers.
          tokens: tokens at the first layer, CLS included.
        """
        _check_layers(self.sites, depth)
        amounts = tuple(self.amount * (layer in self.sites) for layer in range(depth))
        return Removed(amounts).tokens_after(depth, tokens)


@dataclass(frozen=True)
class KeepRate:
    """Keeps ceil(rate x patches) patches at chosen layers, as EViT does.

    Attributes:
      rate: keep rate, in (0, 1].
      sites: layers, counted from 0.
      fused: whether one more token stays, which fuses the removed ones.
    """

    rate: float
    sites: tuple[int, ...] = (3, 6, 9)
    fused: bool = True

    def __post_init__(self):
        if not 0 < self.rate <= 1:
            raise UserError(f"schedule: keep rate {self.rate} must be above 0 and up to 1")

    def tokens_after(self, depth: int, tokens: int) -> tuple[int, ...]:
        """Returns the tokens after each layer.

        Args:
          depth: number of layers.
          tokens: tokens at the first layer, CLS included.

        Raises:
          UserError: a layer does not exist.
        """
        _check_layers(self.sites, depth)
        counts = []
        for layer in range(depth):
            if layer in self.sites:
                num_keep = math.ceil(self.rate * (tokens - 1))
                tokens = min(tokens, 1 + num_keep + self.fused)
            counts.append(tokens)
        return tuple(counts)


@dataclass(frozen=True)
class Kept:
    """Keeps a given number of tokens after each layer, as DiffRate's published schedules do.

    Attributes:
      counts: tokens after each layer, CLS included; they never rise.
    """

    counts: tuple[int, ...]

    def tokens_after(self, depth: int, tokens: int) -> tuple[int, ...]:
        """Returns the tokens after each layer.

        Args:
          depth: number of layers.
          tokens: tokens at the first layer, CLS included.

        Raises:
          UserError: the list has another length than `depth`, or rises.
        """
        counts = self.counts
        if len(counts) != depth or min(counts) < 1 or list(counts) != sorted(counts, reverse=True):
            raise UserError(f"schedule: {counts} must be {depth} counts of 1 or more that never rise")
        return tuple(min(count, tokens) for count in counts)


def _check_layers(layers: tuple[int, ...], depth: int) -> None:
    if any(not 0 <= layer < depth for layer in layers):
        raise UserError(f"schedule: sites={layers} must be layers from 0 to {depth - 1}")


def constant_schedules(depth: int, tokens: int) -> list[Schedule]:
    """Lists schedules that remove a constant number of tokens in every layer, from none to all.

    Args:
      depth: number of layers.
      tokens: tokens at the first layer, CLS included.
    """
    return [Constant(amount) for amount in range(tokens)]


def keep_rate_schedules(depth: int, tokens: int, fused: bool = False) -> list[Schedule]:
    """Lists schedules with one keep rate in three layers, from 1 down in steps of 0.01.

    The layers are at a quarter, half and three quarters of the depth.

    Args:
      depth: number of layers.
      tokens: tokens at the first layer, CLS included.
      fused: whether the removed tokens become one more token, see `KeepRate`.
    """
    return [KeepRate(percent / 100, _quarter_layers(depth), fused) for percent in range(100, 0, -1)]


def fused_keep_rate_schedules(depth: int, tokens: int) -> list[Schedule]:
    """Lists `keep_rate_schedules` for methods that gather the removed tokens in one more token.

    Args:
      depth: number of layers.
      tokens: tokens at the first layer, CLS included.
    """
    return keep_rate_schedules(depth, tokens, fused=True)


def three_layer_schedules(depth: int, tokens: int) -> list[Schedule]:
    """Lists schedules that remove a number of tokens in each of three layers, from none to all.

    Args:
      depth: number of layers.
      tokens: tokens at the first layer, CLS included.
    """
    return [Sites(amount, _quarter_layers(depth)) for amount in range(tokens)]


def ahead_schedules(depth: int, tokens: int) -> list[Schedule]:
    """Lists schedules of methods that reduce before a layer uses its attention map.

    A constant number of tokens in all layers but the first, as far as that goes. The first layer
    comes last: before the first attention only the pixels of a token are known.

    Args:
      depth: number of layers.
      tokens: tokens at the first layer, CLS included.
    """
    most = (tokens - 1) // 2
    schedules = [Removed((0, *[amount] * (depth - 1))) for amount in range(most + 1)]
    return schedules + [Removed((amount, *[most] * (depth - 1))) for amount in range(1, most + 1)]


def _quarter_layers(depth: int) -> tuple[int, ...]:
    return tuple(sorted({depth // 4, depth // 2, 3 * depth // 4}))
