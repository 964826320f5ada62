"""Token reduction methods by name; to add one, see `prance_jax.tokens.method`."""

from __future__ import annotations

from prance_jax.core.errors import UserError
from prance_jax.tokens.method import TokenMethod
from prance_jax.tokens.methods import cait, diffrate, evit, mctf, ppt, prance, spvit_package, tome

METHODS: dict[str, TokenMethod] = {
    method.name: method
    for method in (
        prance.PRUNE,
        prance.MERGE,
        prance.PRUNE_MERGE,
        tome.TOME,
        evit.EVIT,
        spvit_package.PACKAGE,
        ppt.PPT,
        diffrate.DIFFRATE,
        mctf.MCTF,
        cait.CAIT,
    )
}


def get_method(name: str) -> TokenMethod:
    """Looks up a method by name.

    Raises:
      UserError: the name is not known; the message lists the known ones.
    """
    if name not in METHODS:
        raise UserError(f"token optimization {name!r} is not known; choose from {', '.join(METHODS)}")
    return METHODS[name]
