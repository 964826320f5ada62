"""Token methods on the tokens of a network."""

from __future__ import annotations

from typing import NamedTuple

from prance_jax.core.sizes import Size
from prance_jax.spec.model_spec import ModelSpec
from prance_jax.tokens.counts import shifted
from prance_jax.tokens.method import TokenMethod
from prance_jax.tokens.prefix import alone, put_back, without
from prance_jax.tokens.regroup import Grouping
from prance_jax.tokens.token_set import AttentionSignals, TokenSet


class Reducing(NamedTuple):
    """A token method in every layer of a network.

    left: tokens after it in each layer, ints (compact) or int32 [B] (masked), all class tokens counted; where no fewer are
    left than arrive, nothing happens. proportional: whether attention weighs tokens by their sizes; None: as the method
    does.
    """

    method: TokenMethod
    left: tuple[Size, ...]
    proportional: bool | None = None


def apply_method(
    spec: ModelSpec, method: TokenMethod, tokens: TokenSet, signals: AttentionSignals, left: tuple, **options
) -> TokenSet:
    """A token method on the tokens of a network: a distillation token stays out of it. left: all class tokens counted."""
    aside = spec.class_tokens - 1
    if not aside:
        return method.reduce(tokens, signals, *left, **options)
    rest, told = without(tokens, signals, aside)
    found = method.reduce(rest, told, *(shifted(count, -aside) for count in left), **options)
    return put_back(found, tokens, aside)


def group_method(
    spec: ModelSpec, method: TokenMethod, tokens: TokenSet, signals: AttentionSignals, left: tuple
) -> Grouping:
    """The same of a method that is one step ahead."""
    aside = spec.class_tokens - 1
    if not aside:
        return method.ahead(tokens, signals, *left)
    rest, told = without(tokens, signals, aside)
    return alone(method.ahead(rest, told, *(shifted(count, -aside) for count in left)), aside)
