"""Token reduction methods by name."""

from __future__ import annotations

from prance_jax.core.errors import UserError
from prance_jax.core.sizes import Size
from prance_jax.tokens import counts
from prance_jax.tokens.method import TokenMethod
from prance_jax.tokens.methods.cait import _regroup_macs, cait, rectangles, side_of
from prance_jax.tokens.methods.diffrate import _diffrate_macs, diffrate
from prance_jax.tokens.methods.evit import _gather_macs, evit
from prance_jax.tokens.methods.mctf import _mctf_macs, mctf, mctf_groups
from prance_jax.tokens.methods.ppt import ppt
from prance_jax.tokens.methods.prance import _free, _merge_macs, _prune_merge_macs, merge, prune, prune_merge
from prance_jax.tokens.methods.spvit_package import _package_macs, package
from prance_jax.tokens.methods.tome import _match_macs, tome


def _any(count: Size, left: Size, patches: int) -> Size:
    return counts.anything(count, left)


def _gathering(count: Size, left: Size, patches: int) -> Size:
    return counts.with_one_more(count, left)


def _halving(count: Size, left: Size, patches: int) -> Size:
    return counts.halving(count, left)


def _rectangle(count: Size, left: Size, patches: int) -> Size:
    return rectangles(count, left, side_of(patches))


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
