"""One elastic transformer layer, in two halves: decisions are taken between attention and MLP."""

from __future__ import annotations

import math
from typing import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from prance_jax.core.sizes import Size
from prance_jax.models import attention
from prance_jax.models.elastic import broadcast_width, dense, fit_channels, layer_norm
from prance_jax.spec.model_spec import ModelSpec
from prance_jax.tokens.regroup import Grouping, pooled, regroup
from prance_jax.tokens.token_set import AttentionSignals, TokenSet


def identity_init(key: jax.Array, shape: tuple[int, int], dtype=jnp.float32) -> jax.Array:
    """The residual map starts as the plain residual."""
    return jnp.eye(*shape, dtype=dtype)


def sincos_init(key: jax.Array, shape: tuple[int, int], dtype=jnp.float32) -> jax.Array:
    """Learned positions start as 2-D sines and cosines (Beyer et al. 2022, arXiv 2205.01580); class tokens start at zero.

    shape: (class tokens + side^2, channels). Frequencies alternate over the channels, so that every narrow width has all of them.
    """
    tokens, channels = shape
    side = math.isqrt(tokens - 1)
    new_index = jnp.arange(side, dtype=dtype)
    frequency = 10_000 ** -jnp.linspace(0, 1, max(channels // 4, 1), dtype=dtype)
    angles = new_index[:, None] * frequency
    rows, columns = jnp.repeat(angles, side, axis=0), jnp.tile(angles, (side, 1))
    waves = jnp.stack([jnp.sin(rows), jnp.cos(rows), jnp.sin(columns), jnp.cos(columns)], axis=-1).reshape(
        side**2, -1
    )
    waves = jnp.pad(waves, ((tokens - side**2, 0), (0, max(channels - waves.shape[1], 0))))
    return waves[:, :channels]


class Affine(nn.Module):
    """Weights of an affine map, stored whole: kernel [inputs, outputs], bias [outputs]."""

    inputs: int
    outputs: int
    kernel_init: nn.initializers.Initializer = nn.initializers.xavier_uniform()

    @nn.compact
    def __call__(self) -> tuple[jax.Array, jax.Array]:
        kernel = self.param("kernel", self.kernel_init, (self.inputs, self.outputs))
        return kernel, self.param("bias", nn.initializers.zeros, (self.outputs,))


class Norm(nn.Module):
    """Weights of a LayerNorm, stored whole: scale and bias [channels]."""

    channels: int

    @nn.compact
    def __call__(self) -> tuple[jax.Array, jax.Array]:
        scale = self.param("scale", nn.initializers.ones, (self.channels,))
        return scale, self.param("bias", nn.initializers.zeros, (self.channels,))


def norm(spec: ModelSpec, weights: Norm, x: jax.Array, width_in: Size, width: Size) -> jax.Array:
    """LayerNorm over the `reads` channels that arrive; official deployment scales it by the chosen `width`."""
    share = broadcast_width(width, x.ndim) / spec.space.super_width if spec.scale_norm else None
    return layer_norm(x, *weights(), width_in, spec.norm_epsilon, share)


class Block(nn.Module):
    """Pre-norm layer: `attend`, then `feed`. `maps_residual`: the layer closes a group that is not the last one."""

    spec: ModelSpec
    layer: int
    maps_residual: bool

    def setup(self):
        space, (qk, vo) = self.spec.space, self.spec.head_dims(self.layer)
        hidden = self.spec.stored_mlp_dim(self.layer)
        self.norm1 = Norm(space.super_width)
        self.qkv = Affine(space.super_width, space.heads * (2 * qk + vo))
        self.proj = Affine(space.heads * vo, space.super_width)
        self.norm2 = Norm(space.super_width)
        self.fc1 = Affine(space.super_width, hidden)
        self.fc2 = Affine(hidden, space.super_width)
        if self.maps_residual:
            self.residual_map = Affine(space.super_width, space.super_width, identity_init)

    def apply_attention(
        self,
        tokens: TokenSet,
        width_in: Size,
        width: Size,
        received: bool = False,
        policy: jax.Array | None = None,
    ) -> tuple[TokenSet, AttentionSignals]:
        """Attention and its residual.

        reads: width at which tokens arrive. width: width that is written; the same, but for official deployment. received:
        whether the signals hold the attention that each token receives. policy: float32 [B, N], see `attention.attend`; what
        it hides gives no signals.
        """
        space = self.spec.space
        x = norm(self.spec, self.norm1, tokens.features, width_in, width)
        qk, vo = self.spec.head_dims(self.layer)
        ends, inner = (space.heads * qk, 2 * space.heads * qk), space.heads * vo
        qkv = dense(x, *self.qkv(), width_in, ends[1] + inner, ends[1] + inner)
        batch, slots, _ = qkv.shape
        if qk == vo:
            q, k, v = qkv.reshape(batch, slots, 3, space.heads, qk).transpose(2, 0, 3, 1, 4)
        else:
            parts = jnp.split(qkv, ends, axis=-1)
            q, k, v = (part.reshape(batch, slots, space.heads, -1).swapaxes(1, 2) for part in parts)
        bias = attention.key_bias(tokens)
        mixed = self._mix(q, k, v, bias, policy)
        told = attention.attention_signals(q, k, v, attention.visible_bias(bias, policy), received)
        return self._project(tokens, mixed, width_in, width), told

    def attention_one_step_ahead(
        self,
        tokens: TokenSet,
        width_in: Size,
        width: Size,
        group: Callable[[TokenSet, AttentionSignals], Grouping],
    ) -> tuple[TokenSet, AttentionSignals]:
        """`attend`, with tokens that become groups before it, by what its own map tells of them; the map is used again
        for the groups (one-step-ahead attention: MCTF, Lee et al. 2024, arXiv 2403.10030, section 3.3).

        The map of the groups is that of their members, added up over keys and averaged over queries by the weights of the
        grouping. Both are linear, so instead every key carries the value of its group, and what the queries gather is
        averaged: the map itself is never regrouped. Signals are of the tokens that arrive; values are not among them.
        """
        space, (qk, vo) = self.spec.space, self.spec.head_dims(self.layer)
        split = 2 * space.heads * qk
        kernel, offset = self.qkv()

        def heads(tokens: TokenSet, weights: tuple[jax.Array, jax.Array], channels: int) -> jax.Array:
            x = norm(self.spec, self.norm1, tokens.features, width_in, width)
            x = dense(x, *weights, width_in, weights[1].size, weights[1].size)
            return x.reshape(*x.shape[:2], -1, space.heads, channels).transpose(2, 0, 3, 1, 4)

        q, k = heads(tokens, (kernel[:, :split], offset[:split]), qk)
        bias = attention.key_bias(tokens)
        signals = attention.attention_signals(q, k, None, bias, received=True)
        grouping = group(tokens, signals)
        merged = regroup(tokens, *grouping)
        (v,) = heads(merged, (kernel[:, split:], offset[split:]), vo)
        v = jnp.take_along_axis(v, jnp.maximum(grouping.new_index, 0)[:, None, :, None], axis=2)
        v = jnp.where((grouping.new_index >= 0)[:, None, :, None], v, 0)
        mixed = pooled(self._mix(q, k, v, bias), *grouping)
        return self._project(merged, mixed, width_in, width), signals

    def _mix(self, q, k, v, bias, policy=None) -> jax.Array:
        """What the heads gather, side by side: [B, N, heads x channels]."""
        apply_attention = (
            jax.checkpoint(attention.dot_product_attention)
            if self.spec.remat
            else attention.dot_product_attention
        )
        mixed = apply_attention(q, k, v, bias, policy).swapaxes(1, 2)
        return mixed.reshape(*mixed.shape[:2], -1)

    def _project(self, tokens: TokenSet, mixed: jax.Array, width_in: Size, width: Size) -> TokenSet:
        """Projection and residual of attention."""
        space = self.spec.space
        residual = fit_channels(tokens.features, width_in, width, space.max_width)
        return tokens._replace(
            features=residual + dense(mixed, *self.proj(), mixed.shape[-1], width, space.max_width)
        )

    def apply_mlp(self, tokens: TokenSet, width: Size, hidden: Size, target: Size) -> TokenSet:
        """MLP and its residual, from `width` to `target` channels through `hidden` units."""
        space = self.spec.space
        x = tokens.features
        h = norm(self.spec, self.norm2, x, width, width)

        def mlp(h, first, second):
            h = dense(h, *first, width, hidden, space.max_mlp_dim)
            # active(gelu(0)) is 0, so inactive hidden units stay silent.
            return dense(nn.gelu(h, approximate=False), *second, hidden, target, space.max_width)

        mlp = jax.checkpoint(mlp) if self.spec.remat else mlp
        h = mlp(h, self.fc1(), self.fc2())
        if self.maps_residual:
            residual = dense(x, *self.residual_map(), width, target, space.max_width)
        else:
            residual = fit_channels(x, width, target, space.max_width)
        return tokens._replace(features=residual + h)
