"""Soft pruning: what is dropped lives on in one package token (SPViT, Kong et al. 2022, arXiv 2112.13890, section 3.3)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from prance_jax.core.sizes import Size, size_value
from prance_jax.tokens import counts
from prance_jax.tokens.counts import at_least_two, column, removes_nothing
from prance_jax.tokens.method import Amount
from prance_jax.tokens.regroup import regroup, regroup_macs
from prance_jax.tokens.token_set import AttentionSignals, TokenSet, ranks


def package_macs(count: Amount, num_keep: tuple[Amount, ...], width: Amount, keys: int) -> Amount:
    return counts.if_reduced(
        count, num_keep[0], regroup_macs(count, num_keep[0], width) - count * num_keep[0]
    )


def package(
    tokens: TokenSet, signals: AttentionSignals, num_keep: Size, drops: jax.Array | None = None
) -> TokenSet:
    """Keeps the tokens of the highest scores; the others go into the package token: `left` remain, the package last.

    The package is the mean of all that went into it, weighted by scores; it is never dropped, and later reductions add to
    it in place of opening another one (the paper appends a token at every selector). The score is the attention from CLS.
    left: int or int32 [B], 2 at least. drops: bool [B], which images drop something, where `left` cannot tell: one token
    alone in a new package leaves as many as there were.
    """
    num_keep = at_least_two(tokens.count, num_keep)
    if removes_nothing(tokens, num_keep):
        return tokens
    scores = signals.cls_attention
    slots = jnp.arange(scores.shape[1])
    gathered = jnp.zeros_like(scores[:, 0]) if tokens.package is None else tokens.package
    is_package = (slots == column(tokens.count) - 1) & (gathered > 0)[:, None]
    rank, kept = ranks(tokens, jnp.where(is_package, -jnp.inf, scores)), column(num_keep) - 1
    changes = column(tokens.count - size_value(num_keep)) > 0 if drops is None else drops[:, None]
    goes = changes & (rank >= kept)
    if tokens.valid is not None:
        goes &= tokens.valid
    new_index = jnp.where(changes, jnp.minimum(rank, kept), slots)
    weights = jnp.where(goes, jnp.where(is_package, gathered[:, None], scores), 1.0)
    packed = regroup(tokens, new_index, num_keep, weights, sized=False)
    return packed._replace(package=jnp.maximum(gathered, jnp.sum(jnp.where(goes, weights, 0.0), axis=1)))
