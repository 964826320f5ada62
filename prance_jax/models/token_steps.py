"""Token methods on the tokens of a network."""

from __future__ import annotations

from typing import NamedTuple

from prance_jax.core.sizes import Size
from prance_jax.spec.model_spec import ModelSpec
from prance_jax.tokens.counts import shift_size
from prance_jax.tokens.method import TokenMethod
from prance_jax.tokens.prefix import join_prefix, prefix_groups, split_prefix
from prance_jax.tokens.regroup import Grouping
from prance_jax.tokens.token_set import AttentionSignals, TokenSet


class LayerReduction(NamedTuple):
    """A token method in every layer of a network.

    left: tokens after it in each layer, ints (compact) or int32 [B] (masked), all class tokens counted; where no fewer are
    left than arrive, nothing happens. proportional: whether attention weighs tokens by their sizes; None: as the method
    does.
    """

    method: TokenMethod
    num_keep: tuple[Size, ...]
    proportional: bool | None = None


def apply_method(
    spec: ModelSpec,
    method: TokenMethod,
    tokens: TokenSet,
    signals: AttentionSignals,
    num_keep: tuple,
    **options,
) -> TokenSet:
    """A token method on the tokens of a network: a distillation token stays out of it. left: all class tokens counted."""
    extra_prefix_tokens = spec.class_tokens - 1
    if not extra_prefix_tokens:
        return method.reduce(tokens, signals, *num_keep, **options)
    rest, told = split_prefix(tokens, signals, extra_prefix_tokens)
    found = method.reduce(
        rest, told, *(shift_size(count, -extra_prefix_tokens) for count in num_keep), **options
    )
    return join_prefix(found, tokens, extra_prefix_tokens)


def group_method(
    spec: ModelSpec, method: TokenMethod, tokens: TokenSet, signals: AttentionSignals, num_keep: tuple
) -> Grouping:
    """The same of a method that is one step ahead."""
    extra_prefix_tokens = spec.class_tokens - 1
    if not extra_prefix_tokens:
        return method.ahead(tokens, signals, *num_keep)
    rest, told = split_prefix(tokens, signals, extra_prefix_tokens)
    return prefix_groups(
        method.ahead(rest, told, *(shift_size(count, -extra_prefix_tokens) for count in num_keep)),
        extra_prefix_tokens,
    )
