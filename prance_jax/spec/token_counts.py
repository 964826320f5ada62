"""Counts the tokens in each layer of a network: what arrives, what remains, what the last layer computes."""

from __future__ import annotations

from typing import NamedTuple

from prance_jax.core.sizes import Size, size_value
from prance_jax.spec.model_spec import ModelSpec
from prance_jax.spec.structure import Structure


class TokenCounts(NamedTuple):
    """Tokens in the attention and the MLP of each layer, class tokens counted; ints or int32 [B].

    Attributes:
      attention: tokens that arrive at each layer's attention; all have keys.
      mlp: tokens in each layer's MLP.
      values: tokens whose values are mixed and projected, for methods that reduce before the
        attention uses its map. None: the same as `attention`.
      last_queries: tokens of the last layer that attend to the others. None: all of them.
    """

    attention: tuple[Size, ...]
    mlp: tuple[Size, ...]
    values: tuple[Size, ...] | None = None
    last_queries: int | None = None


def tokens_after_layers(spec: ModelSpec, structure: Structure) -> tuple[Size, ...]:
    """Counts the tokens that remain after each layer's reduction, also those that no head reads.

    Args:
      spec: of the network.
      structure: static or per image; may be the first groups only.

    Returns:
      One count per layer, ints or int32 [B].
    """
    tokens_after, count = [], spec.tokens
    for group in structure.groups:
        count = size_value((count, *spec.tokens_after(count, group.keep))[-1])
        tokens_after += [count] * len(group.widths)
    return tuple(tokens_after)


def token_counts(spec: ModelSpec, structure: Structure) -> TokenCounts:
    """Counts the tokens in each layer of a structure.

    Args:
      spec: of the network.
      structure: static or per image; may be the first groups only.
    """
    tokens_after = tokens_after_layers(spec, structure)
    attention = (spec.tokens, *tokens_after[:-1])
    values = None if spec.method.group_ahead is None else tokens_after
    if len(tokens_after) < spec.space.depth:
        return TokenCounts(attention, tokens_after, values)
    return with_last_layer(spec, attention, tokens_after, values)


def with_last_layer(
    spec: ModelSpec,
    attention: tuple[Size, ...],
    tokens_after: tuple[Size, ...],
    values: tuple[Size, ...] | None = None,
) -> TokenCounts:
    """Returns the counts of a whole network, in whose last layer only the tokens are computed that are read.

    Args:
      spec: of the network.
      attention: tokens that arrive at each layer's attention.
      tokens_after: tokens that remain after each layer's reduction.
      values: see `TokenCounts`.
    """
    last_mlp = spec.class_tokens if spec.reads_class_tokens_only else tokens_after[-1]
    last_queries = spec.num_queries(spec.space.depth - 1)
    return TokenCounts(attention, (*tokens_after[:-1], last_mlp), values, last_queries)
