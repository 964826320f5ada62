"""Counts multiply-accumulates (MACs), parameters and tokens of a structure.

The papers print MACs as "FLOPs". Everything that runs is counted once:

- patch embedding;
- attention at the token count before a reduction, MLP at the count after it;
- in the last layer only the tokens that the head reads, see `ModelSpec.num_queries`: class tokens
  have queries and an MLP, all tokens have keys and values;
- residual maps, token reduction, the selector at each decision, the classifier.

Softmax, norms and GELU are not multiply-accumulates; `spec.element_operations` counts their elements.
Matching of pairs under a schedule is not counted, as in the papers, see
`models.reduction.scheduled_macs`.

The same functions take a static structure (Python integers, exact) and a per-image one (float32
[B], also under `jit`).

Tests check the counts (first measured 2026-11-20):

- With a full last layer DeiT-T/S/B have 1.25, 4.60 and 17.56 GMACs. ToMe, EViT, PPT and DiffRate on
  them have the MACs that their papers print.
- The products of the compact program add up to 2 x MACs within 0.5 %.
- XLA's own total is within 3 % on `small` and `base`. On `tiny` it is 4 to 5 % higher, all of it
  element operations.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from prance_jax.core.sizes import Size
from prance_jax.spec.model_spec import ModelSpec
from prance_jax.spec.structure import GroupChoice, Structure
from prance_jax.spec.token_counts import TokenCounts, token_counts
from prance_jax.tokens.counts import if_reduced
from prance_jax.tokens.regroup import pool_macs, regroup_macs

Amount = int | jax.Array


class Macs(NamedTuple):
    """Multiply-accumulates of one image, by part of the network; ints or float32 [B].

    Attributes:
      patch_embedding: projection of the patches.
      attention: q, k, v, attention map, weighted values and output projection of all layers.
      mlp: MLPs of all layers.
      residual_maps: linear maps at the ends of groups.
      token_optimization: products of the token method at all decision points.
      selector: the selector at all decision points.
      classifier: the heads.
    """

    patch_embedding: Amount
    attention: Amount
    mlp: Amount
    residual_maps: Amount
    token_optimization: Amount
    selector: Amount
    classifier: Amount

    @property
    def total(self) -> Amount:
        """Sum of all parts."""
        return sum(self)


def macs(spec: ModelSpec, structure: Structure, selector: int = 0, counts: TokenCounts | None = None) -> Macs:
    """Counts the multiply-accumulates of one image under a structure.

    Args:
      spec: of the network.
      structure: static or per image.
      selector: MACs of one decision; counted once for each decision point.
      counts: tokens of each layer, if something else than the structure's keep rates sets them. The
        MACs of the token method are then left out.

    Returns:
      MACs by part; ints for a static structure, float32 [B] for a per-image one.
    """
    space = spec.space
    token_optimization = _token_method_macs(spec, structure) if counts is None else 0
    counts = counts or token_counts(spec, structure)
    widths, mlp_dims = as_numbers(structure, structure.widths), as_numbers(structure, structure.mlp_dims)
    before, after = as_numbers(structure, counts.attention), as_numbers(structure, counts.mlp)
    mixed = before if counts.values is None else as_numbers(structure, counts.values)
    attention = mlp = residual_maps = 0
    mlp_inputs = 1 + spec.architecture.gated_mlp
    for layer, (width_in, width_out) in enumerate(widths_in_out(spec, widths)):
        qk, vo = (space.heads * channels for channels in spec.head_dims(layer))
        queries, projected = before[layer], mixed[layer]
        if layer == space.depth - 1 and counts.last_queries is not None:
            queries = projected = counts.last_queries
        attention += (queries + before[layer]) * width_in * qk + queries * before[layer] * (qk + vo)
        attention += vo * (mixed[layer] * width_in + projected * widths[layer])
        mlp += after[layer] * mlp_dims[layer] * (mlp_inputs * widths[layer] + width_out)
        if _has_residual_map(spec, layer):
            residual_maps += after[layer] * widths[layer] * width_out
    return Macs(
        patch_embedding=(spec.tokens - spec.num_prefix_tokens) * spec.patch_values * widths[0],
        attention=attention,
        mlp=mlp,
        residual_maps=residual_maps,
        token_optimization=token_optimization,
        selector=selector * (space.groups - 1) + (_observed_maps(spec, before) if selector else 0),
        classifier=spec.read_tokens * widths[-1] * spec.outputs,
    )


def prefix_macs(spec: ModelSpec, groups: tuple[GroupChoice, ...]) -> Amount:
    """Counts the MACs of the first groups of a network, up to the attention of the last one's last layer.

    With `exit_macs` of all groups it adds up to `macs(...).total`; with a full last layer to less, by
    the last MLP of the tokens that no head reads.

    Args:
      spec: of the network.
      groups: choices of the first groups, static or per image.
    """
    structure = Structure(groups)
    parts = macs(spec, structure)
    return (
        parts.total - parts.classifier - _last_mlp_macs(spec, groups, token_counts(spec, structure).mlp[-1])
    )


def exit_macs(spec: ModelSpec, groups: tuple[GroupChoice, ...]) -> Amount:
    """Counts the MACs of an answer after the first groups: MLP of the last layer on the tokens read, classifier.

    Args:
      spec: of the network.
      groups: choices of the first groups, static or per image; all groups for the network's own head.
    """
    count = token_counts(spec, Structure(groups)).mlp[-1] if spec.reads_all_tokens else spec.class_tokens
    reads_head = len(groups) == spec.space.groups or spec.pixels
    (width,) = as_numbers(Structure(groups), groups[-1].widths[-1:])
    return (
        _last_mlp_macs(spec, groups, count) + (spec.read_tokens if reads_head else 1) * width * spec.outputs
    )


def single_look_macs(spec: ModelSpec, structure: Structure) -> int:
    """Counts the MACs of one look that runs to its end under a static structure.

    Args:
      spec: network of the look.
      structure: static structure.
    """
    return prefix_macs(spec, structure.groups) + exit_macs(spec, structure.groups)


def _last_mlp_macs(spec: ModelSpec, groups: tuple[GroupChoice, ...], count: Size) -> Amount:
    """MACs of the MLP of the last layer of the last of these groups, which writes the width that it reads."""
    width, mlp_dim, count = as_numbers(
        Structure(groups), (groups[-1].widths[-1], groups[-1].mlp_dims[-1], count)
    )
    residual = width if _has_residual_map(spec, spec.space.last_layers[len(groups) - 1]) else 0
    return count * width * ((2 + spec.architecture.gated_mlp) * mlp_dim + residual)


def count_parameters(spec: ModelSpec, structure: Structure) -> Amount:
    """Counts the parameters of the network that a structure uses, those of the selector excluded.

    Args:
      spec: of the network.
      structure: static or per image.
    """
    space = spec.space
    widths, mlp_dims = as_numbers(structure, structure.widths), as_numbers(structure, structure.mlp_dims)
    total = widths[0] * (spec.patch_values + 1) + widths[0] * (spec.num_prefix_tokens + spec.positions)
    total = total + 2 * widths[0] * spec.architecture.pre_norm
    for layer, (width_in, width_out) in enumerate(widths_in_out(spec, widths)):
        width = widths[layer]
        qk, vo = (space.heads * channels for channels in spec.head_dims(layer))
        total = total + 2 * width_in + (width_in + 1) * (2 * qk + vo) + (vo + 1) * width
        hidden, num_inputs = mlp_dims[layer], 1 + spec.architecture.gated_mlp
        total = total + 2 * width + num_inputs * (width + 1) * hidden + (hidden + 1) * width_out
        if _has_residual_map(spec, layer):
            total = total + (width + 1) * width_out
    return total + 2 * widths[-1] + (1 + spec.distilled) * (widths[-1] + 1) * spec.outputs


def _has_residual_map(spec: ModelSpec, layer: int) -> bool:
    """Residual maps are in the last layer of every group but the last group."""
    return spec.residual_maps and layer + 1 in spec.space.first_layers


def widths_in_out(spec: ModelSpec, widths: list[Amount]) -> list[tuple[Amount, Amount]]:
    """Returns the channels that each layer's attention reads and each layer's MLP writes.

    Args:
      spec: of the network.
      widths: of its layers; may be those of the first groups only.
    """
    space = spec.space
    widths_in = list(widths)
    if spec.enter_at_widest:
        for layer in space.first_layers[1:]:
            if layer < len(widths):  # fewer in the first groups of a network
                widths_in[layer] = space.max_width
    return list(zip(widths_in, [*widths_in[1:], widths[-1]]))


def _observed_maps(spec: ModelSpec, counts: list[Amount]) -> Amount:
    """MACs of the attention maps that only a selector reads: without CLS an observation needs a whole map."""
    if spec.architecture.class_token:
        return 0
    method, space = spec.method, spec.space
    reduced = space.first_layers[1:] if method.needs_received or method.needs_importance else ()
    return sum(
        counts[layer] ** 2 * space.attention_width for layer in space.last_layers[:-1] if layer not in reduced
    )


def _token_method_macs(spec: ModelSpec, structure: Structure) -> Amount:
    """Multiply-accumulates of the token method at all decision points."""
    method, space, total = spec.method, spec.space, 0
    counts, widths = token_counts(spec, structure).attention, as_numbers(structure, structure.widths)
    extra_prefix_tokens = spec.extra_prefix_tokens
    for first, group in zip(space.first_layers[1:], structure.groups[1:]):
        all_before, *all_after = as_numbers(
            structure, (counts[first], *spec.tokens_after(counts[first], group.keep))
        )
        # Extra prefix tokens take no part in the reduction; a placeholder for CLS does.
        before, after = all_before - extra_prefix_tokens, [count - extra_prefix_tokens for count in all_after]
        total += method.macs(before, tuple(after), widths[first], space.head_dim)
        if method.needs_received or (method.needs_importance and not spec.architecture.class_token):
            total += all_before**2 * space.attention_width
        if method.group_ahead is not None:
            # All tokens are regrouped, and the attention output per query is averaged, too.
            regrouping = pool_macs(all_before, all_after[-1], space.attention_width)
            regrouping += regroup_macs(all_before, all_after[-1], widths[first])
            total += if_reduced(
                before, after[-1], regrouping - regroup_macs(before, after[-1], widths[first])
            )
    return total


def as_numbers(structure: Structure, sizes: tuple[Size, ...]) -> list[Amount]:
    """Keeps integers of a static structure exact; others become float32, as totals exceed int32.

    Args:
      structure: static or per image.
      sizes: ints or int32 [B].
    """
    if structure.static and all(isinstance(size, int) for size in sizes):
        return list(sizes)
    return [float(size) if isinstance(size, int) else jnp.asarray(size, jnp.float32) for size in sizes]
