"""Token reduction methods by name."""

from __future__ import annotations

from prance_jax.core.errors import UserError
from prance_jax.core.sizes import Size
from prance_jax.tokens import counts
from prance_jax.tokens.method import TokenMethod
from prance_jax.tokens.methods.cait import cait, cait_macs, rectangles, side_of
from prance_jax.tokens.methods.diffrate import diffrate, diffrate_macs
from prance_jax.tokens.methods.evit import evit, evit_macs
from prance_jax.tokens.methods.mctf import mctf, mctf_groups, mctf_macs
from prance_jax.tokens.methods.ppt import ppt
from prance_jax.tokens.methods.prance import merge, merge_macs, no_macs, prune, prune_merge, prune_merge_macs
from prance_jax.tokens.methods.spvit_package import package, package_macs
from prance_jax.tokens.methods.tome import tome, tome_macs


def _any_number(count: Size, num_keep: Size, patches: int) -> Size:
    return counts.any_number(count, num_keep)


def _gathering(count: Size, num_keep: Size, patches: int) -> Size:
    return counts.at_least_two(count, num_keep)


def _halving(count: Size, num_keep: Size, patches: int) -> Size:
    return counts.halving(count, num_keep)


def _rectangle(count: Size, num_keep: Size, patches: int) -> Size:
    return rectangles(count, num_keep, side_of(patches))


METHODS = {
    method.name: method
    for method in (
        TokenMethod("prune", prune, _any_number, no_macs, sized=False),
        TokenMethod("merge", merge, _any_number, merge_macs, weighted=True),
        TokenMethod("prune_merge", prune_merge, _any_number, prune_merge_macs, rates=2, weighted=True),
        TokenMethod("tome", tome, _halving, tome_macs),
        TokenMethod("evit", evit, _gathering, evit_macs, sized=False),
        TokenMethod("package", package, _gathering, package_macs, sized=False),
        TokenMethod("ppt", ppt, _halving, tome_macs),
        TokenMethod("diffrate", diffrate, _any_number, diffrate_macs),
        TokenMethod("mctf", mctf, _halving, mctf_macs, received=True, ahead=mctf_groups),
        TokenMethod("cait", cait, _rectangle, cait_macs),
    )
}


def get_method(name: str) -> TokenMethod:
    """Raises UserError with the known names for an unknown one."""
    if name not in METHODS:
        raise UserError(f"token optimization {name!r} is not known; choose from {', '.join(METHODS)}")
    return METHODS[name]
