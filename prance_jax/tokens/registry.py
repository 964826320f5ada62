"""Token methods by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable

from prance_jax.errors import UserError
from prance_jax.tokens.merge import merge
from prance_jax.tokens.prune import prune
from prance_jax.tokens.prune_merge import prune_merge
from prance_jax.tokens.tokenset import TokenSet


@dataclass(frozen=True)
class TokenMethod:
    """A way to reduce tokens at a decision point.

    reduce: (TokenSet, AttentionSignals, rates, floor) -> TokenSet, pure, static shapes. Networks with more than one class
      token pass `class_tokens`, how many of the first tokens are to be left alone.
    rates: number of keep rates that it takes.
    prunes, merges: which of its rates (by index) drops and which merges, None where it does not; the counter of
      multiply-accumulates needs the difference.
    """

    name: str
    reduce: Callable[..., TokenSet]
    prunes: int | None
    merges: int | None

    @property
    def rates(self) -> int:
        return (self.prunes is not None) + (self.merges is not None)


METHODS = {
    method.name: method
    for method in (
        TokenMethod("prune", prune, prunes=0, merges=None),
        TokenMethod("merge", merge, prunes=None, merges=0),
        TokenMethod("prune_merge", prune_merge, prunes=0, merges=1),
    )
}


def get_method(name: str) -> TokenMethod:
    """Raises UserError with the known names for an unknown one."""
    if name not in METHODS:
        raise UserError(f"token optimization {name!r} is not known; choose from {', '.join(METHODS)}")
    return METHODS[name]
