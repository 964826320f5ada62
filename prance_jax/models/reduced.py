"""Training-free token reduction on any network of the package: ToMe, EViT, PPT under a schedule."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, Callable, NamedTuple

import jax

from prance_jax.complexity import Macs, TokenCounts, macs
from prance_jax.errors import UserError
from prance_jax.models.vit import ViT
from prance_jax.space import Structure
from prance_jax.spec import ModelSpec
from prance_jax.tokens import AttentionSignals, TokenSet
from prance_jax.tokens.evit import evit
from prance_jax.tokens.ppt import ppt
from prance_jax.tokens.schedules import Constant, KeepRate, Schedule, Sites
from prance_jax.tokens.tome import tome

Method = Callable[[TokenSet, AttentionSignals, int], TokenSet]
METHODS: dict[str, Method] = {
    "tome": tome,
    "evit": evit,
    "evit_drop": functools.partial(evit, fuse=False),
    "ppt": ppt,
}


@dataclass(frozen=True)
class Reduction:
    """A method and its schedule. Hashable: it selects a compiled program."""

    method: Method
    schedule: Schedule

    def counts(self, spec: ModelSpec) -> TokenCounts:
        """Tokens in the attention and in the MLP of each layer; in the last MLP only CLS."""
        left = self.schedule.left(spec.space.depth, spec.tokens)
        return TokenCounts((spec.tokens, *left[:-1]), (*left[:-1], 1))


class Reduced(NamedTuple):
    """logits: float32 [B, num_classes]. tokens: of the last layer, with sizes and owners."""

    logits: jax.Array
    tokens: TokenSet


def reduced(
    model: ViT, params: Any, images: jax.Array, structure: Structure, reduction: Reduction
) -> Reduced:
    """Runs images [B, S, S, channels] under a static structure (its keep rates are not used) with a reduction.

    Raises UserError for a distilled network. Where the schedule removes nothing this is the network itself, without the last MLP on tokens that nobody reads.
    """
    if model.spec.distilled:
        raise UserError("ToMe, EViT and PPT know one class token here; a distilled network has two")
    left = reduction.schedule.left(model.spec.space.depth, model.spec.tokens)

    def between(layer: int, tokens: TokenSet, signals: AttentionSignals) -> TokenSet:
        return reduction.method(tokens, signals, left[layer])

    return Reduced(*model.apply({"params": params}, images, structure, between, method="reduced"))


def at_macs(spec: ModelSpec, structure: Structure, name: str, target: float) -> Reduction:
    """The reduction of a method whose multiply-accumulates come nearest to `target`: ToMe at a constant number per layer,
    PPT at a number per site, EViT at a keep rate in steps of 0.01; sites after a quarter, half and three quarters of the
    layers."""
    depth = spec.space.depth
    sites = tuple(sorted({depth // 4, depth // 2, 3 * depth // 4}))
    if name.startswith("evit"):
        fused = name == "evit"
        schedules = [KeepRate(percent / 100, sites, fused) for percent in range(1, 101)]
    elif name == "ppt":
        schedules = [Sites(amount, sites) for amount in range(spec.tokens)]
    else:
        schedules = [Constant(amount) for amount in range(spec.tokens)]
    reductions = [Reduction(METHODS[name], schedule) for schedule in schedules]
    return min(reductions, key=lambda own: abs(reduced_macs(spec, structure, own).total - target))


def reduced_macs(spec: ModelSpec, structure: Structure, reduction: Reduction) -> Macs:
    """Multiply-accumulates of one image; matching is not counted, as in the papers (ToMe's is
    count^2 / 4 x head_dim in a layer)."""
    return macs(spec, structure, counts=reduction.counts(spec))
