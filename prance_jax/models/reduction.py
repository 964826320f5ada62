"""Token reduction under a fixed schedule, on any network of the package, with or without training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from prance_jax.models.forward import Params
from prance_jax.models.outputs import ViTOutput
from prance_jax.models.token_steps import LayerReduction
from prance_jax.models.vit import ViT
from prance_jax.spec.block_latency import BlockLatency, LatencyTargetError, first_fast_enough
from prance_jax.spec.macs import Macs, macs
from prance_jax.spec.model_spec import ModelSpec
from prance_jax.spec.structure import Structure
from prance_jax.spec.token_counts import TokenCounts, with_last_layer
from prance_jax.tokens.method import TokenMethod
from prance_jax.tokens.methods.registry import METHODS as ALL
from prance_jax.tokens.schedules import Schedule
from prance_jax.tokens.token_set import TokenSet
from prance_jax.tokens.unmerge import Fill, last_features, unmerge

# Under a schedule; methods of two rates need a decision for each.
METHODS: dict[str, TokenMethod] = {name: method for name, method in ALL.items() if method.rates == 1}


@dataclass(frozen=True)
class ScheduledReduction:
    """A token method and its schedule. Hashable: it selects a compiled program.

    Attributes:
      method: the token method.
      schedule: tokens after each layer.
      proportional: whether attention weighs tokens by their sizes; None: as the method does.
    """

    method: TokenMethod
    schedule: Schedule
    proportional: bool | None = None

    def tokens_after(self, spec: ModelSpec) -> tuple[int, ...]:
        """Returns the tokens after each layer: the schedule's, as near as the method can come.

        The last layer keeps all that arrive where a reduction would change no answer, see
        `ModelSpec.reduces_last_layer`.

        Args:
          spec: the network.
        """
        count, counts, extra_prefix_tokens = spec.tokens, [], spec.extra_prefix_tokens
        requests = self.schedule.tokens_after(spec.space.depth, spec.tokens)
        if not spec.reduces_last_layer(self.method):
            requests = (*requests[:-1], spec.tokens)
        for requested in requests:
            count = extra_prefix_tokens + self.method.feasible_count(
                count - extra_prefix_tokens, min(requested, count) - extra_prefix_tokens, spec.patches
            )
            counts.append(count)
        return tuple(counts)

    def layer_reduction(self, spec: ModelSpec) -> LayerReduction:
        """Returns the reduction with its counts for one network."""
        return LayerReduction(self.method, self.tokens_after(spec), self.proportional)

    def counts(self, spec: ModelSpec) -> TokenCounts:
        """Returns the tokens in attention and MLP of each layer."""
        tokens_after = self.tokens_after(spec)
        attention = (spec.tokens, *tokens_after[:-1])
        if self.method.group_ahead is None:
            return with_last_layer(spec, attention, tokens_after)
        counts = with_last_layer(spec, attention, tokens_after, tokens_after)
        # One step ahead, the queries of all tokens are needed to group them.
        return counts._replace(last_queries=None) if tokens_after[-1] < attention[-1] else counts

    def milliseconds(self, spec: ModelSpec, table: BlockLatency) -> float:
        """Looks up the time of one image on the largest structure, reductions included.

        Args:
          spec: the network.
          table: measured times of its layers.
        """
        counts, tokens_after = self.counts(spec), self.tokens_after(spec)
        reduced = tuple(before for before, after in zip(counts.attention, tokens_after) if after < before)
        return table.milliseconds(counts, self.method.name, reduced)


def forward_reduced(
    model: ViT, params: Any, images: jax.Array, structure: Structure, reduction: ScheduledReduction
) -> ViTOutput:
    """Classifies images under a static structure with a scheduled reduction.

    A schedule that removes nothing gives the network itself.

    Args:
      model: the network.
      params: its parameters.
      images: float [B, S, S, channels].
      structure: static; its keep rates are not used.
      reduction: the method and its schedule.
    """
    layer_reduction = reduction.layer_reduction(model.spec)
    return model.apply({"params": params}, images, structure, layer_reduction, method="forward_reduced")


def reduction_at_macs(spec: ModelSpec, structure: Structure, name: str, target: float) -> ScheduledReduction:
    """Finds the reduction of a method whose MACs come nearest to a target.

    Args:
      spec: the network.
      structure: static structure of the network.
      name: of the method, one of `METHODS`.
      target: multiply-accumulates of one image.
    """
    error = lambda reduction: abs(scheduled_macs(spec, structure, reduction).total - target)
    return min(candidate_reductions(spec, name), key=error)


def reduction_at_latency(
    spec: ModelSpec, name: str, target: float, table: BlockLatency
) -> ScheduledReduction:
    """Finds the reduction of a method that keeps the most tokens within a target latency.

    Args:
      spec: the network, at its largest structure.
      name: of the method, one of `METHODS`.
      target: milliseconds of one image.
      table: measured times of the network's layers.

    Raises:
      LatencyTargetError: no reduction of the method is so fast. It is a UserError.
    """
    milliseconds = lambda reduction: reduction.milliseconds(spec, table)
    try:
        return first_fast_enough(target, candidate_reductions(spec, name), milliseconds, table)
    except LatencyTargetError as error:
        raise LatencyTargetError(f"{name}: {error}") from None


def candidate_reductions(spec: ModelSpec, name: str) -> list[ScheduledReduction]:
    """Lists the usual reductions of a method, from the least reduction to the most.

    Args:
      spec: the network.
      name: of the method, one of `METHODS`.
    """
    method = METHODS[name]
    schedules = method.schedules(spec.space.depth, spec.tokens)
    return [ScheduledReduction(method, schedule) for schedule in schedules]


def scheduled_macs(spec: ModelSpec, structure: Structure, reduction: ScheduledReduction) -> Macs:
    """Counts the multiply-accumulates of one image under a scheduled reduction.

    Matching is not counted, as in the papers (ToMe's is count^2 / 4 x head_dim in a layer).

    Args:
      spec: the network.
      structure: static structure.
      reduction: the method and its schedule.
    """
    return macs(spec, structure, counts=reduction.counts(spec))


def forward_segmenter(
    model: ViT, params: Params, images: jax.Array, reduction: ScheduledReduction, fill: Fill | None = None
) -> jax.Array:
    """Classifies every pixel on the largest structure with a scheduled reduction.

    Tokens are put back on the grid after the last layer. A merged token stands for all its patches.

    Args:
      model: the network.
      params: its parameters.
      images: float [B, S, S, channels].
      reduction: the method and its schedule.
      fill: features of a dropped patch: 'nearest', those of the nearest one that remains; 'zero'; or None, its own when it
        was dropped.

    Returns:
      Logits float32 [B, S, S, num_classes].
    """
    spec, features = model.spec, []

    def remember(before: TokenSet, after: TokenSet) -> None:
        """Keeps the features of every patch as they were when it was dropped."""
        known = features[-1] if features else jnp.zeros_like(before.features[:, spec.num_prefix_tokens :])
        known = jnp.pad(known, ((0, 0), (0, spec.patches - known.shape[1]), (0, 0)))
        features.append(last_features(known, before, after))

    def run(model: ViT) -> jax.Array:
        watch = remember if fill is None else None
        tokens = model.forward_reduced(images, spec.largest, reduction.layer_reduction(spec), watch).tokens
        grid = unmerge(tokens, fill or "nearest", features[-1] if features else None, spec.grid)
        return model.pixel_logits(grid, spec.largest.widths[-1])

    return model.apply({"params": params}, method=run)
