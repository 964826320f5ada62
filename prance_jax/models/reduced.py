"""Training-free token reduction on any network of the package: ToMe, EViT, PPT under a schedule."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, Callable, NamedTuple

import jax

from prance_jax.complexity import Macs, TokenCounts, macs
from prance_jax.models.vit import ViT
from prance_jax.space import Structure
from prance_jax.spec import ModelSpec
from prance_jax.tokens import AttentionSignals, TokenSet
from prance_jax.tokens.evit import evit
from prance_jax.tokens.ppt import ppt
from prance_jax.tokens.schedules import Schedule
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

    Where the schedule removes nothing this is the network itself, without the last MLP on tokens that nobody reads.
    """
    left = reduction.schedule.left(model.spec.space.depth, model.spec.tokens)

    def between(layer: int, tokens: TokenSet, signals: AttentionSignals) -> TokenSet:
        return reduction.method(tokens, signals, left[layer])

    return Reduced(*model.apply({"params": params}, images, structure, between, method="reduced"))


def reduced_macs(spec: ModelSpec, structure: Structure, reduction: Reduction) -> Macs:
    """Multiply-accumulates of one image; matching is not counted, as in the papers (ToMe's is
    count^2 / 4 x head_dim in a layer)."""
    return macs(spec, structure, counts=reduction.counts(spec))
