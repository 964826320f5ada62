"""The small network that predicts which tokens stay (SPViT, arXiv 2112.13890, section 3.2; DynamicViT, arXiv 2106.02034, section 3.2)."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp


def predictor_macs(tokens: int, width: int, heads: int) -> int:
    """Of one selector on so many tokens: per head d -> d, d -> d/2 -> d/4 -> 2, d = width / heads; head importance."""
    inner = width // heads
    each = inner * inner + inner * (inner // 2) + (inner // 2) * (inner // 4) + (inner // 4) * 2
    return tokens * (heads * each + (2 * heads * (heads // 2) if heads > 1 else 0))


class TokenPredictor(nn.Module):
    """Log-probabilities (keep, drop) of every token, from itself and the mean of those that are still there.

    Every head has weights of its own (in SPViT's public code all share one set by mistake).
    """

    width: int
    heads: int

    @nn.compact
    def __call__(self, x: jax.Array, is_kept: jax.Array) -> tuple[jax.Array, jax.Array]:
        """x: [B, N, C] without CLS; there: float32 [B, N]. Returns log-probabilities for drawing, float32 [B, N, 2], and
        the probability to be kept, float32 [B, N]; heads are averaged by their importance, in logarithms for the first
        and plainly for the second (section 3.2)."""
        heads, inner = self.heads, self.width // self.heads
        x = x.astype(jnp.float32).reshape(*x.shape[:2], heads, inner)

        def affine(name: str, x: jax.Array, outputs: int) -> jax.Array:
            # One matrix per head is drawn as one: lecun_normal would count the heads as inputs.
            init = nn.initializers.lecun_normal(batch_axis=(0,))
            kernel = self.param(f"{name}_kernel", init, (heads, x.shape[-1], outputs))
            bias = self.param(f"{name}_bias", nn.initializers.zeros, (heads, outputs))
            return jnp.einsum("bnhi,hio->bnho", x, kernel) + bias

        scale = self.param("norm_scale", nn.initializers.ones, (heads, inner))
        shift = self.param("norm_bias", nn.initializers.zeros, (heads, inner))
        normed = (x - x.mean(-1, keepdims=True)) * jax.lax.rsqrt(x.var(-1, keepdims=True) + 1e-6)
        z = nn.gelu(affine("embed", normed * scale + shift, inner), approximate=False)
        local, spread = z[..., : inner // 2], z[..., inner // 2 :]
        weight = is_kept[:, :, None, None]
        mean = jnp.sum(spread * weight, 1, keepdims=True) / jnp.maximum(
            jnp.sum(weight, 1, keepdims=True), 1.0
        )
        z = jnp.concatenate([local, jnp.broadcast_to(mean, spread.shape)], axis=-1)
        z = nn.gelu(affine("first", z, inner // 2), approximate=False)
        z = nn.gelu(affine("second", z, inner // 4), approximate=False)
        logits = affine("decide", z, 2)
        if heads == 1:
            chances = jax.nn.log_softmax(logits[:, :, 0])
            return chances, jnp.exp(chances[..., 0])
        importance = nn.Dense(max(heads // 2, 1), name="squeeze")(x.mean(-1))
        importance = nn.sigmoid(nn.Dense(heads, name="excite")(nn.gelu(importance, approximate=False)))
        importance = (importance / importance.sum(-1, keepdims=True))[..., None]
        chances = jnp.sum(importance * jax.nn.log_softmax(logits), axis=2)
        keep = jnp.sum(importance * jax.nn.softmax(logits), axis=2)[..., 0]
        return chances, keep


def gumbel_keep_mask(chances: jax.Array, key: jax.Array) -> jax.Array:
    """1 where a token is kept, float32 [B, N]; its gradient is that of the softmax at temperature 1."""
    soft = jax.nn.softmax(chances + jax.random.gumbel(key, chances.shape))[..., 0]
    hard = (soft > 0.5).astype(jnp.float32)
    # In brackets: the difference is exactly zero, so that nothing is dropped by a rounding error.
    return hard + (soft - jax.lax.stop_gradient(soft))
