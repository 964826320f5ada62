"""One elastic transformer layer, in two halves: attention and MLP. Decisions are taken between them."""

from __future__ import annotations

from typing import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from prance_jax.core.sizes import Size
from prance_jax.models import attention
from prance_jax.models.elastic import (
    AffineWeights,
    NormWeights,
    activation,
    apply_norm,
    dense,
    fit_channels,
    identity_init,
)
from prance_jax.spec.model_spec import ModelSpec
from prance_jax.tokens.regroup import Grouping, pool_tokens, regroup
from prance_jax.tokens.token_set import AttentionSignals, TokenSet, leading_tokens


class Block(nn.Module):
    """Pre-norm transformer layer: `apply_attention`, then `apply_mlp`.

    Attributes:
      spec: the network.
      layer: index of the layer, from 0.
      maps_residual: whether the MLP's residual is a learned linear map, as in the last layer of a group.
    """

    spec: ModelSpec
    layer: int
    maps_residual: bool

    def setup(self):
        space, (qk, vo) = self.spec.space, self.spec.head_dims(self.layer)
        mlp_dim = self.spec.stored_mlp_dim(self.layer)
        self.norm1 = NormWeights(space.super_width)
        self.qkv = AffineWeights(space.super_width, space.heads * (2 * qk + vo))
        self.proj = AffineWeights(space.heads * vo, space.super_width)
        self.norm2 = NormWeights(space.super_width)
        self.fc1 = AffineWeights(space.super_width, mlp_dim)
        if self.spec.architecture.gated_mlp:
            self.fc1_g = AffineWeights(space.super_width, mlp_dim)
        self.fc2 = AffineWeights(mlp_dim, space.super_width)
        if self.maps_residual:
            self.residual_map = AffineWeights(space.super_width, space.super_width, identity_init)

    def apply_attention(
        self,
        tokens: TokenSet,
        width_in: Size,
        width: Size,
        received: bool = False,
        policy: jax.Array | None = None,
        num_queries: int | None = None,
    ) -> tuple[TokenSet, AttentionSignals]:
        """Applies attention and its residual.

        Args:
          tokens: tokens that arrive.
          width_in: channels at which they arrive.
          width: channels that are written; other than `width_in` only in official deployment.
          received: whether the signals hold the attention that each token receives.
          policy: float32 [B, N], see `attention.dot_product_attention`; a hidden token gives no signals.
          num_queries: leading tokens that attend to all, see `ModelSpec.num_queries`; the others end here. None: all
            tokens attend.

        Returns:
          The tokens after attention, and its signals: of all tokens that arrived.
        """
        x = apply_norm(self.spec, self.norm1, tokens.features, width_in, width)
        q, k, v = self._queries_keys_values(x, width_in, num_queries)
        angles = attention.rotary_angles(self.spec, tokens)
        q, k = attention.rotate(q, angles), attention.rotate(k, angles)
        bias = attention.key_bias(tokens)
        mixed = self._mix(q, k, v, bias, policy)
        visible, has_cls = attention.visible_bias(bias, policy), self.spec.architecture.class_token
        signals = attention.attention_signals(q, k, v, visible, received, has_cls)
        if num_queries is not None:
            tokens = leading_tokens(tokens, num_queries)
        return self._project(tokens, mixed, width_in, width), signals

    def attention_one_step_ahead(
        self,
        tokens: TokenSet,
        width_in: Size,
        width: Size,
        group: Callable[[TokenSet, AttentionSignals], Grouping],
    ) -> tuple[TokenSet, AttentionSignals]:
        """Merges tokens by the layer's own attention map, then uses that map for the merged tokens.

        The map of the groups is the map of their members, summed over keys and averaged over queries by the weights of
        the grouping. Both are linear. So every key carries the value of its group, and the outputs of the queries are
        averaged; the map itself is never regrouped.

        Args:
          tokens: tokens that arrive.
          width_in: channels at which they arrive.
          width: channels that are written.
          group: groups tokens by the signals of the attention that is about to be applied.

        Returns:
          The merged tokens after attention; signals of the tokens that arrived, without values.

        Reference: one-step-ahead attention, MCTF, Lee et al. 2024, arXiv 2403.10030, section 3.3.
        """
        space, (qk, vo) = self.spec.space, self.spec.head_dims(self.layer)
        split = 2 * space.heads * qk
        kernel, offset = self.qkv()

        def heads(tokens: TokenSet, weights: tuple[jax.Array, jax.Array], channels: int) -> jax.Array:
            x = apply_norm(self.spec, self.norm1, tokens.features, width_in, width)
            x = dense(x, *weights, width_in, weights[1].size, weights[1].size)
            return x.reshape(*x.shape[:2], -1, space.heads, channels).transpose(2, 0, 3, 1, 4)

        angles = attention.rotary_angles(self.spec, tokens)
        q, k = (attention.rotate(x, angles) for x in heads(tokens, (kernel[:, :split], offset[:split]), qk))
        bias = attention.key_bias(tokens)
        has_cls = self.spec.architecture.class_token
        signals = attention.attention_signals(q, k, None, bias, received=True, has_cls=has_cls)
        grouping = group(tokens, signals)
        merged = regroup(tokens, *grouping)
        (v,) = heads(merged, (kernel[:, split:], offset[split:]), vo)
        v = jnp.take_along_axis(v, jnp.maximum(grouping.new_index, 0)[:, None, :, None], axis=2)
        v = jnp.where((grouping.new_index >= 0)[:, None, :, None], v, 0)
        mixed = pool_tokens(self._mix(q, k, v, bias), *grouping)
        return self._project(merged, mixed, width_in, width), signals

    def _queries_keys_values(
        self, x: jax.Array, width_in: Size, num_queries: int | None
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Queries of the leading tokens, keys and values of all: [B, H, N, channels of a head]."""
        heads, (qk, vo) = self.spec.space.heads, self.spec.head_dims(self.layer)
        kernel, offset = self.qkv()
        end, total = heads * qk, heads * (2 * qk + vo)
        by_head = lambda part: part.reshape(*part.shape[:2], heads, -1).swapaxes(1, 2)
        if num_queries is not None:
            q = dense(x[:, :num_queries], kernel[:, :end], offset[:end], width_in, end, end)
            keys_values = dense(x, kernel[:, end:], offset[end:], width_in, total - end, total - end)
            return by_head(q), *map(by_head, jnp.split(keys_values, (end,), axis=-1))
        qkv = dense(x, kernel, offset, width_in, total, total)
        if qk == vo:
            return tuple(qkv.reshape(*qkv.shape[:2], 3, heads, qk).transpose(2, 0, 3, 1, 4))
        return tuple(map(by_head, jnp.split(qkv, (end, 2 * end), axis=-1)))

    def _mix(self, q, k, v, bias, policy=None) -> jax.Array:
        """Attention outputs of all heads, side by side: [B, N, heads x channels]."""
        attend = attention.dot_product_attention
        attend = jax.checkpoint(attend) if self.spec.remat else attend
        mixed = attend(q, k, v, bias, policy).swapaxes(1, 2)
        return mixed.reshape(*mixed.shape[:2], -1)

    def _project(self, tokens: TokenSet, mixed: jax.Array, width_in: Size, width: Size) -> TokenSet:
        """Projection and residual of attention."""
        space = self.spec.space
        residual = fit_channels(tokens.features, width_in, width, space.max_width)
        return tokens._replace(
            features=residual + dense(mixed, *self.proj(), mixed.shape[-1], width, space.max_width)
        )

    def apply_mlp(self, tokens: TokenSet, width: Size, mlp_dim: Size, width_out: Size) -> TokenSet:
        """Applies the MLP and its residual.

        Args:
          tokens: tokens after attention.
          width: channels that arrive.
          mlp_dim: hidden units.
          width_out: channels that are written.
        """
        space, architecture = self.spec.space, self.spec.architecture
        x, act = tokens.features, activation(architecture.act_layer)
        h = apply_norm(self.spec, self.norm2, x, width, width)

        def mlp(h, first, second, gate=None):
            hidden = dense(h, *first, width, mlp_dim, space.max_mlp_dim)
            # The activation of 0 is 0, so inactive hidden units stay 0.
            hidden = (
                act(hidden)
                if gate is None
                else hidden * act(dense(h, *gate, width, mlp_dim, hidden.shape[-1]))
            )
            return dense(hidden, *second, mlp_dim, width_out, space.max_width)

        mlp = jax.checkpoint(mlp) if self.spec.remat else mlp
        h = mlp(h, self.fc1(), self.fc2(), *([self.fc1_g()] if architecture.gated_mlp else []))
        if self.maps_residual:
            residual = dense(x, *self.residual_map(), width, width_out, space.max_width)
        else:
            residual = fit_channels(x, width, width_out, space.max_width)
        return tokens._replace(features=residual + h)
