"""Extra prefix tokens (a distillation token, registers) are taken out before a token method runs.

So no method has to handle them. A method gets one prefix token, which it neither removes nor merges: the first one, CLS as
a rule. The others stand behind it: [first, extra prefix tokens, patches]. A network without prefix tokens has -1 extra
ones: its methods get a placeholder, which is removed again.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from prance_jax.tokens.counts import shift_size
from prance_jax.tokens.regroup import Grouping
from prance_jax.tokens.token_set import AttentionSignals, TokenSet


def split_prefix(
    tokens: TokenSet, signals: AttentionSignals, extra_prefix_tokens: int
) -> tuple[TokenSet, AttentionSignals]:
    """Takes the extra prefix tokens out of a token set and its signals.

    Args:
      tokens: all tokens [B, N].
      signals: signals of all tokens [B, N].
      extra_prefix_tokens: prefix tokens but the first one; -1 if there is none, then the placeholder is a copy of the first
        patch.

    Returns:
      Tokens and signals of the other N - extra_prefix_tokens.
    """

    def without_extra(x: jax.Array | None) -> jax.Array | None:
        return None if x is None else jnp.concatenate([x[:, :1], x[:, 1 + extra_prefix_tokens :]], axis=1)

    token_of_patch = jnp.where(tokens.token_of_patch < 0, -1, tokens.token_of_patch - extra_prefix_tokens)
    reducible = TokenSet(
        without_extra(tokens.features),
        without_extra(tokens.size),
        without_extra(tokens.valid),
        token_of_patch,
        tokens.package,
    )
    return reducible, AttentionSignals(*(without_extra(signal) for signal in signals))


def join_prefix(reduced: TokenSet, tokens: TokenSet, extra_prefix_tokens: int) -> TokenSet:
    """Puts the extra prefix tokens back, unchanged; removes a placeholder.

    Args:
      reduced: reduced tokens, without the extra prefix tokens.
      tokens: all tokens before the reduction.
      extra_prefix_tokens: as for `split_prefix`.
    """

    def join(new: jax.Array | None, old: jax.Array | None) -> jax.Array | None:
        if new is None or extra_prefix_tokens < 0:
            return None if new is None else new[:, 1:]
        extra = (
            jnp.ones_like(new[:, :1].repeat(extra_prefix_tokens, 1))
            if old is None
            else old[:, 1 : 1 + extra_prefix_tokens]
        )
        return jnp.concatenate([new[:, :1], extra.astype(new.dtype), new[:, 1:]], axis=1)

    token_of_patch = jnp.where(reduced.token_of_patch < 0, -1, reduced.token_of_patch + extra_prefix_tokens)
    features, size = join(reduced.features, tokens.features), join(reduced.size, tokens.size)
    return TokenSet(features, size, join(reduced.valid, tokens.valid), token_of_patch, reduced.package)


def prefix_groups(grouping: Grouping, extra_prefix_tokens: int) -> Grouping:
    """Extends a grouping by the extra prefix tokens, each a group by itself; removes a placeholder.

    Args:
      grouping: groups of the tokens without them.
      extra_prefix_tokens: as for `split_prefix`.
    """
    batch = len(grouping.new_index)
    num_keep = shift_size(grouping.num_keep, extra_prefix_tokens)
    if extra_prefix_tokens < 0:
        return Grouping(jnp.maximum(grouping.new_index[:, 1:] - 1, -1), num_keep, grouping.weights[:, 1:])
    extra = jnp.broadcast_to(
        jnp.arange(1, 1 + extra_prefix_tokens, dtype=grouping.new_index.dtype), (batch, extra_prefix_tokens)
    )
    shifted = jnp.where(grouping.new_index[:, 1:] < 0, -1, grouping.new_index[:, 1:] + extra_prefix_tokens)
    new_index = jnp.concatenate([grouping.new_index[:, :1], extra, shifted], axis=1)
    ones = jnp.ones((batch, extra_prefix_tokens), grouping.weights.dtype)
    weights = jnp.concatenate([grouping.weights[:, :1], ones, grouping.weights[:, 1:]], axis=1)
    return Grouping(new_index, num_keep, weights)
