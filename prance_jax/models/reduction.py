"""Token reduction under a schedule on any network of the package, with or without training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax

from prance_jax.models.token_steps import LayerReduction
from prance_jax.models.vit import ViT, ViTOutput
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
class ScheduledReduction:
    """A method and its schedule. Hashable: it selects a compiled program.

    proportional: attention weighs tokens by their sizes; by default as the method does.
    """

    method: TokenMethod
    schedule: Schedule
    proportional: bool | None = None

    def tokens_after(self, spec: ModelSpec) -> tuple[int, ...]:
        """Tokens after each layer: what the schedule asks for, as far as the method can."""
        count, counts = spec.tokens, []
        for wanted in self.schedule.tokens_after(spec.space.depth, spec.tokens):
            extra_prefix_tokens = spec.class_tokens - 1
            count = extra_prefix_tokens + self.method.possible(
                count - extra_prefix_tokens, min(wanted, count) - extra_prefix_tokens, spec.patches
            )
            counts.append(count)
        return tuple(counts)

    def layer_reduction(self, spec: ModelSpec) -> LayerReduction:
        """What a network does by it."""
        return LayerReduction(self.method, self.tokens_after(spec), self.proportional)

    def counts(self, spec: ModelSpec) -> TokenCounts:
        """Tokens in the attention and in the MLP of each layer; in the last MLP only class tokens, for pixels all."""
        tokens_after = self.tokens_after(spec)
        fed = tokens_after if spec.pixels else (*tokens_after[:-1], spec.class_tokens)
        return TokenCounts(
            (spec.tokens, *tokens_after[:-1]), fed, None if self.method.ahead is None else tokens_after
        )

    def milliseconds(self, spec: ModelSpec, table: BlockLatency) -> float:
        """Of one image on the largest structure, by a measured table; what the reductions themselves take is counted."""
        tokens_after = self.tokens_after(spec)
        before = (spec.tokens, *tokens_after[:-1])
        arriving = tuple(count for count, after in zip(before, tokens_after) if after < count)
        return table.milliseconds(self.counts(spec), self.method.name, arriving)


def forward_reduced(
    model: ViT, params: Any, images: jax.Array, structure: Structure, reduction: ScheduledReduction
) -> ViTOutput:
    """Runs images [B, S, S, channels] under a static structure (its keep rates are not used) with a reduction.

    Where the schedule removes nothing this is the network itself, without the last MLP on tokens that nobody reads.
    """
    layer_reduction = reduction.layer_reduction(model.spec)
    return model.apply({"params": params}, images, structure, layer_reduction, method="forward_reduced")


def at_macs(spec: ModelSpec, structure: Structure, name: str, target: float) -> ScheduledReduction:
    """The reduction of a method whose multiply-accumulates come nearest to `target`."""
    return min(
        candidate_reductions(spec, name),
        key=lambda own: abs(scheduled_macs(spec, structure, own).total - target),
    )


def at_milliseconds(spec: ModelSpec, name: str, target: float, table: BlockLatency) -> ScheduledReduction:
    """The reduction of a method that removes the least of those whose time by a measured table is at most `target`
    milliseconds an image, on the largest structure. Raises OutOfReach, a UserError, where none is so fast."""
    try:
        return first_within(
            target, candidate_reductions(spec, name), lambda own: own.milliseconds(spec, table), table
        )
    except OutOfReach as error:
        raise OutOfReach(f"{name}: {error}") from None


def candidate_reductions(spec: ModelSpec, name: str) -> list[ScheduledReduction]:
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
    return [ScheduledReduction(method, schedule) for schedule in schedules]


def scheduled_macs(spec: ModelSpec, structure: Structure, reduction: ScheduledReduction) -> Macs:
    """Multiply-accumulates of one image; matching is not counted, as in the papers (ToMe's is
    count^2 / 4 x head_dim in a layer)."""
    return macs(spec, structure, counts=reduction.counts(spec))
