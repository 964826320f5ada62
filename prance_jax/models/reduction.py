"""Token reduction under a schedule on any network of the package, with or without training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax

from prance_jax.models.token_steps import Reducing
from prance_jax.models.vit import Reduced, ViT
from prance_jax.spec.block_latency import BlockLatency, OutOfReach, first_within
from prance_jax.spec.macs import Macs, TokenCounts, macs
from prance_jax.spec.model_spec import ModelSpec
from prance_jax.spec.structure import Structure
from prance_jax.tokens.method import TokenMethod
from prance_jax.tokens.methods.registry import METHODS as ALL
from prance_jax.tokens.schedules import Constant, KeepRate, Removed, Schedule, Sites

# Under a schedule; methods of two rates need a decision for each.
METHODS: dict[str, TokenMethod] = {name: method for name, method in ALL.items() if method.rates == 1}


@dataclass(frozen=True)
class Reduction:
    """A method and its schedule. Hashable: it selects a compiled program.

    proportional: attention weighs tokens by their sizes; by default as the method does.
    """

    method: TokenMethod
    schedule: Schedule
    proportional: bool | None = None

    def left(self, spec: ModelSpec) -> tuple[int, ...]:
        """Tokens after each layer: what the schedule asks for, as far as the method can."""
        count, counts = spec.tokens, []
        for wanted in self.schedule.left(spec.space.depth, spec.tokens):
            aside = spec.class_tokens - 1
            count = aside + self.method.possible(count - aside, min(wanted, count) - aside, spec.patches)
            counts.append(count)
        return tuple(counts)

    def reducing(self, spec: ModelSpec) -> Reducing:
        """What a network does by it."""
        return Reducing(self.method, self.left(spec), self.proportional)

    def counts(self, spec: ModelSpec) -> TokenCounts:
        """Tokens in the attention and in the MLP of each layer; in the last MLP only class tokens, for pixels all."""
        left = self.left(spec)
        fed = left if spec.pixels else (*left[:-1], spec.class_tokens)
        return TokenCounts((spec.tokens, *left[:-1]), fed, None if self.method.ahead is None else left)

    def milliseconds(self, spec: ModelSpec, table: BlockLatency) -> float:
        """Of one image on the largest structure, by a measured table; what the reductions themselves take is counted."""
        left = self.left(spec)
        before = (spec.tokens, *left[:-1])
        arriving = tuple(count for count, after in zip(before, left) if after < count)
        return table.milliseconds(self.counts(spec), self.method.name, arriving)


def reduced(
    model: ViT, params: Any, images: jax.Array, structure: Structure, reduction: Reduction
) -> Reduced:
    """Runs images [B, S, S, channels] under a static structure (its keep rates are not used) with a reduction.

    Where the schedule removes nothing this is the network itself, without the last MLP on tokens that nobody reads.
    """
    reducing = reduction.reducing(model.spec)
    return model.apply({"params": params}, images, structure, reducing, method="reduced")


def at_macs(spec: ModelSpec, structure: Structure, name: str, target: float) -> Reduction:
    """The reduction of a method whose multiply-accumulates come nearest to `target`."""
    return min(reductions(spec, name), key=lambda own: abs(reduced_macs(spec, structure, own).total - target))


def at_milliseconds(spec: ModelSpec, name: str, target: float, table: BlockLatency) -> Reduction:
    """The reduction of a method that removes the least of those whose time by a measured table is at most `target`
    milliseconds an image, on the largest structure. Raises OutOfReach, a UserError, where none is so fast."""
    try:
        return first_within(target, reductions(spec, name), lambda own: own.milliseconds(spec, table), table)
    except OutOfReach as error:
        raise OutOfReach(f"{name}: {error}") from None


def reductions(spec: ModelSpec, name: str) -> list[Reduction]:
    """What a method is usually run at, from little to much: methods that merge pairs and DiffRate with a constant number
    of tokens in every layer (MCTF in all but the first, while that is enough), PPT with a number at each of three sites, the
    others at a keep rate there in steps of 0.01. Sites lie after a quarter, half and three quarters of the layers."""
    depth, method = spec.space.depth, METHODS[name]
    sites = tuple(sorted({depth // 4, depth // 2, 3 * depth // 4}))
    if name in ("prune", "evit", "package", "cait"):
        fused = name in ("evit", "package")
        schedules = [KeepRate(percent / 100, sites, fused) for percent in range(100, 0, -1)]
    elif name == "ppt":
        schedules = [Sites(amount, sites) for amount in range(spec.tokens)]
    elif method.ahead is not None:
        # Before the first attention nothing is known of a token but its pixels: that layer comes last.
        most = (spec.tokens - 1) // 2
        schedules = [Removed((0, *[amount] * (depth - 1))) for amount in range(most + 1)]
        schedules += [Removed((amount, *[most] * (depth - 1))) for amount in range(1, most + 1)]
    else:
        schedules = [Constant(amount) for amount in range(spec.tokens)]
    return [Reduction(method, schedule) for schedule in schedules]


def reduced_macs(spec: ModelSpec, structure: Structure, reduction: Reduction) -> Macs:
    """Multiply-accumulates of one image; matching is not counted, as in the papers (ToMe's is
    count^2 / 4 x head_dim in a layer)."""
    return macs(spec, structure, counts=reduction.counts(spec))
