"""Token methods by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable

import jax

from prance_jax.core.errors import UserError
from prance_jax.spec.search_space import Rate, Size, number
from prance_jax.tokens import counts
from prance_jax.tokens.methods.cait import cait
from prance_jax.tokens.methods.diffrate import diffrate
from prance_jax.tokens.methods.evit import evit
from prance_jax.tokens.methods.grid import rectangles, side_of
from prance_jax.tokens.methods.mctf import mctf, mctf_groups
from prance_jax.tokens.methods.merge import merge
from prance_jax.tokens.methods.ppt import ppt
from prance_jax.tokens.methods.prune import prune
from prance_jax.tokens.methods.prune_merge import prune_merge
from prance_jax.tokens.methods.spvit_package import package
from prance_jax.tokens.methods.tome import matching_macs, tome
from prance_jax.tokens.regroup import Grouping, regroup_macs
from prance_jax.tokens.token_set import TokenSet, kept_count

Amount = int | jax.Array
# (tokens that arrive, tokens wanted, original patches) -> tokens that the method leaves then.
Possible = Callable[[Size, Size, int], Size]
# (tokens that arrive, tokens left after each of its steps, channels, width of a key) -> multiply-accumulates.
Cost = Callable[[Amount, tuple[Amount, ...], Amount, int], Amount]


@dataclass(frozen=True)
class TokenMethod:
    """A way to reduce tokens: after the attention of a layer, before its MLP, or one step ahead.

    reduce: (TokenSet, AttentionSignals, *left) -> TokenSet; pure, static shapes; `left`, one number per rate, are ints
      (compact execution) or int32 [B] (masked), as `possible` gives them.
    possible: how many tokens it can leave. macs: what its products cost.
    rates: keep rates that it takes. sized: sizes are tracked, so attention is proportional to them.
    received: it reads the attention that each token receives. weighted: it has the option of that name.
    ahead: (TokenSet, AttentionSignals, *left) -> Grouping, of methods that come before the attention whose map they read, see
      `models.block.Block.attend_ahead`; `reduce` is the same after it. None: after it.
    """

    name: str
    reduce: Callable[..., TokenSet]
    possible: Possible
    macs: Cost
    rates: int = 1
    sized: bool = True
    received: bool = False
    weighted: bool = False
    ahead: Callable[..., Grouping] | None = None

    def left(
        self, count: Size, rates: tuple[Rate, ...], floor: int, patches: int, aside: int = 0
    ) -> tuple[Size, ...]:
        """Tokens after each rate is applied in turn: floor(rate x tokens), `floor` at least, as far as is possible.
        aside: tokens that are counted but stay out of it, see `aside`."""
        result = []
        for rate in rates:
            wanted = counts.shifted(kept_count(count, rate, floor), -aside)
            possible = self.possible(counts.shifted(count, -aside), wanted, patches)
            result.append(counts.shifted(possible, aside))
            count = number(result[-1])
        return tuple(result)


def _any(count: Size, left: Size, patches: int) -> Size:
    return counts.anything(count, left)


def _gathering(count: Size, left: Size, patches: int) -> Size:
    return counts.with_one_more(count, left)


def _halving(count: Size, left: Size, patches: int) -> Size:
    return counts.halving(count, left)


def _rectangle(count: Size, left: Size, patches: int) -> Size:
    return rectangles(count, left, side_of(patches))


def _free(count: Amount, left: tuple[Amount, ...], width: Amount, keys: int) -> Amount:
    return 0


def _merge_macs(count: Amount, left: tuple[Amount, ...], width: Amount, keys: int) -> Amount:
    """Similarities, the gathering product, and the two small ones that add up weights and sizes."""
    return (count - left[-1]) * left[-1] * (2 * width + 2)


def _prune_merge_macs(count: Amount, left: tuple[Amount, ...], width: Amount, keys: int) -> Amount:
    return _merge_macs(left[0], left[1:], width, keys)


def _diffrate_macs(count: Amount, left: tuple[Amount, ...], width: Amount, keys: int) -> Amount:
    between = count - ((count - left[0]) // 2)
    return _merge_macs(between, left, width, keys)


def _gather_macs(count: Amount, left: tuple[Amount, ...], width: Amount, keys: int) -> Amount:
    """A sum needs no total and has no sizes; the package has a total."""
    return counts.if_any_goes(count, left[0], regroup_macs(count, left[0], width) - 2 * count * left[0])


def _package_macs(count: Amount, left: tuple[Amount, ...], width: Amount, keys: int) -> Amount:
    return counts.if_any_goes(count, left[0], regroup_macs(count, left[0], width) - count * left[0])


def _match_macs(count: Amount, left: tuple[Amount, ...], width: Amount, keys: int) -> Amount:
    return counts.if_any_goes(
        count, left[0], matching_macs(count, keys) + regroup_macs(count, left[0], width)
    )


def _mctf_macs(count: Amount, left: tuple[Amount, ...], width: Amount, keys: int) -> Amount:
    return _match_macs(count, left, width, width)


def _regroup_macs(count: Amount, left: tuple[Amount, ...], width: Amount, keys: int) -> Amount:
    return counts.if_any_goes(count, left[0], regroup_macs(count, left[0], width))


METHODS = {
    method.name: method
    for method in (
        TokenMethod("prune", prune, _any, _free, sized=False),
        TokenMethod("merge", merge, _any, _merge_macs, weighted=True),
        TokenMethod("prune_merge", prune_merge, _any, _prune_merge_macs, rates=2, weighted=True),
        TokenMethod("tome", tome, _halving, _match_macs),
        TokenMethod("evit", evit, _gathering, _gather_macs, sized=False),
        TokenMethod("package", package, _gathering, _package_macs, sized=False),
        TokenMethod("ppt", ppt, _halving, _match_macs),
        TokenMethod("diffrate", diffrate, _any, _diffrate_macs),
        TokenMethod("mctf", mctf, _halving, _mctf_macs, received=True, ahead=mctf_groups),
        TokenMethod("cait", cait, _rectangle, _regroup_macs),
    )
}


def get_method(name: str) -> TokenMethod:
    """Raises UserError with the known names for an unknown one."""
    if name not in METHODS:
        raise UserError(f"token optimization {name!r} is not known; choose from {', '.join(METHODS)}")
    return METHODS[name]
