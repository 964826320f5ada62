"""What forward passes of the ViT return."""

from __future__ import annotations

from typing import NamedTuple

import jax

from prance_jax.core.sizes import Size
from prance_jax.tokens.token_set import AttentionSignals, TokenSet


class ViTOutput(NamedTuple):
    """Output of a forward pass under a scheduled reduction.

    Attributes:
      logits: float32 [B, num_classes]; for pixels [B, S, S, num_classes].
      tokens: tokens after the last attention, with their sizes and `token_of_patch`; for pixels after the last MLP.
        Features of class tokens alone unless the last layer is full, see `ModelSpec.num_queries`.
      class_token: [B, C], what the classifier reads, after the final norm.
    """

    logits: jax.Array
    tokens: TokenSet
    class_token: jax.Array


class GroupState(NamedTuple):
    """State of inference between two groups: after the attention of a group's last layer, before its MLP.

    Attributes:
      tokens: the tokens, `width` channels wide. After the last group features of class tokens alone, see
        `ModelSpec.num_queries`; `token_of_patch` is that of all tokens.
      signals: signals of that attention.
      width: width of the MLP that still has to run.
      mlp_dim: hidden units of that MLP.
      early_logits: float32 [B, num_classes], the head's answer for the tokens as they are now.
      patch_attention: float32 [B, P], attention from CLS to the token that contained each patch in that attention, mean
        over heads; 0 for patches that were pruned before it.
    """

    tokens: TokenSet
    signals: AttentionSignals
    width: Size
    mlp_dim: Size
    early_logits: jax.Array
    patch_attention: jax.Array | None = None
