"""Counts the elements in element-wise functions, which MACs do not include."""

from __future__ import annotations

import operator
from typing import NamedTuple

from prance_jax.spec.macs import Amount, as_numbers, widths_in_out
from prance_jax.spec.model_spec import ModelSpec
from prance_jax.spec.structure import Structure
from prance_jax.spec.token_counts import token_counts


class ElementOperations(NamedTuple):
    """Elements of one image in element-wise functions; ints or float32 [B].

    Attributes:
      softmax: entries of all attention maps.
      norm: entries of all LayerNorms.
      gelu: entries of all GELUs, or of the activation in their place.
    """

    softmax: Amount
    norm: Amount
    gelu: Amount


def element_operations(spec: ModelSpec, structure: Structure) -> ElementOperations:
    """Counts the elements in softmax, LayerNorm and GELU, which MACs do not include.

    Args:
      spec: of the network.
      structure: static or per image.
    """
    space, counts = spec.space, token_counts(spec, structure)
    widths, mlp_dims = as_numbers(structure, structure.widths), as_numbers(structure, structure.mlp_dims)
    before, after = as_numbers(structure, counts.attention), as_numbers(structure, counts.mlp)
    queries = before if counts.last_queries is None else [*before[:-1], counts.last_queries]
    widths_in = [width_in for width_in, _ in widths_in_out(spec, widths)]
    layers = zip(before, after, widths_in, widths)
    return ElementOperations(
        softmax=space.heads * sum(map(operator.mul, queries, before)),
        norm=sum(
            num_before * width_in + num_after * width for num_before, num_after, width_in, width in layers
        )
        + _normed_at_end(spec, after[-1]) * widths[-1]
        + spec.tokens * widths[0] * spec.architecture.pre_norm,
        gelu=sum(count * mlp_dim for count, mlp_dim in zip(after, mlp_dims)),
    )


def _normed_at_end(spec: ModelSpec, remaining: Amount) -> Amount:
    """Tokens in the last norm: those that a head reads, or all before their mean."""
    is_mean_of_normed = spec.architecture.global_pool != "token" and not spec.architecture.fc_norm
    return remaining if is_mean_of_normed and not spec.pixels else spec.read_tokens
