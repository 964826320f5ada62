"""The token predictor: a small network that predicts which tokens to keep.

The module also holds what networks with predictors share in training: sampling of decisions, and the
package token that pools dropped tokens.

References: SPViT, Kong et al. 2022, arXiv 2112.13890, section 3.2; DynamicViT, Rao et al. 2021,
arXiv 2106.02034, section 3.2.
"""

from __future__ import annotations

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from prance_jax.tokens.token_set import AttentionSignals


class MaskedOutput(NamedTuple):
    """Output of training, in which tokens are masked.

    Attributes:
      logits: float32 [B, num_classes].
      kept: [B, predictors], share of the patches that each predictor keeps, with a gradient.
      features: [B, P, C], patches of the last layer after the final norm.
      is_kept: float32 [B, P], which patches remain.
    """

    logits: jax.Array
    kept: jax.Array
    features: jax.Array
    is_kept: jax.Array


class TokenPredictor(nn.Module):
    """Predicts from each token, and the mean of the tokens that remain, whether to keep it.

    Every head has separate weights. (In SPViT's public code all heads share one set by mistake.)

    Attributes:
      width: channels of a token; a multiple of `heads`.
      heads: parts of the channels that are judged separately. With one head there is no branch of
        head importance, as in DynamicViT.
    """

    width: int
    heads: int

    @nn.compact
    def __call__(self, x: jax.Array, is_kept: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Predicts how likely each token is kept.

        Heads are averaged by their importance: their logarithms for the first result, their
        probabilities for the second (section 3.2 of SPViT).

        Args:
          x: [B, N, C], the tokens without CLS.
          is_kept: float32 [B, N], 1 for tokens that remain.

        Returns:
          Log-probabilities (keep, drop) for sampling, float32 [B, N, 2]; and the probability to be
          kept, float32 [B, N].
        """
        heads, head_dim = self.heads, self.width // self.heads
        x = x.astype(jnp.float32).reshape(*x.shape[:2], heads, head_dim)

        def affine(name: str, x: jax.Array, outputs: int) -> jax.Array:
            # The heads are a batch axis: otherwise lecun_normal would count them as inputs.
            init = nn.initializers.lecun_normal(batch_axis=(0,))
            kernel = self.param(f"{name}_kernel", init, (heads, x.shape[-1], outputs), jnp.float32)
            bias = self.param(f"{name}_bias", nn.initializers.zeros, (heads, outputs), jnp.float32)
            return jnp.einsum("bnhi,hio->bnho", x, kernel) + bias

        scale = self.param("norm_scale", nn.initializers.ones, (heads, head_dim), jnp.float32)
        shift = self.param("norm_bias", nn.initializers.zeros, (heads, head_dim), jnp.float32)
        normed = (x - x.mean(-1, keepdims=True)) * jax.lax.rsqrt(x.var(-1, keepdims=True) + 1e-6)
        z = nn.gelu(affine("embed", normed * scale + shift, head_dim), approximate=False)
        local_half, global_half = z[..., : head_dim // 2], z[..., head_dim // 2 :]
        weight = is_kept[:, :, None, None]
        mean = jnp.sum(global_half * weight, 1, keepdims=True) / jnp.maximum(
            jnp.sum(weight, 1, keepdims=True), 1.0
        )
        z = jnp.concatenate([local_half, jnp.broadcast_to(mean, global_half.shape)], axis=-1)
        z = nn.gelu(affine("first", z, head_dim // 2), approximate=False)
        z = nn.gelu(affine("second", z, head_dim // 4), approximate=False)
        logits = affine("decide", z, 2)
        if heads == 1:
            log_probs = jax.nn.log_softmax(logits[:, :, 0])
            return log_probs, jnp.exp(log_probs[..., 0])
        importance = nn.Dense(max(heads // 2, 1), name="squeeze")(x.mean(-1))
        importance = nn.sigmoid(nn.Dense(heads, name="excite")(nn.gelu(importance, approximate=False)))
        importance = (importance / importance.sum(-1, keepdims=True))[..., None]
        log_probs = jnp.sum(importance * jax.nn.log_softmax(logits), axis=2)
        keep = jnp.sum(importance * jax.nn.softmax(logits), axis=2)[..., 0]
        return log_probs, keep


def predictor_macs(tokens: int | jax.Array, width: int, heads: int) -> int | jax.Array:
    """Counts the multiply-accumulates of one token predictor.

    Each head has layers d -> d, d -> d/2 -> d/4 -> 2 with d = width / heads; head importance is
    added.

    Args:
      tokens: that arrive, CLS excluded; int or int32 [B].
      width: channels of a token.
      heads: of the predictor.
    """
    head_dim = width // heads
    macs_per_head = (
        head_dim * head_dim
        + head_dim * (head_dim // 2)
        + (head_dim // 2) * (head_dim // 4)
        + (head_dim // 4) * 2
    )
    return tokens * (heads * macs_per_head + (2 * heads * (heads // 2) if heads > 1 else 0))


def gumbel_keep_mask(log_probs: jax.Array, key: jax.Array) -> jax.Array:
    """Samples which tokens are kept (straight-through Gumbel-softmax).

    Args:
      log_probs: float32 [B, N, 2], log-probabilities (keep, drop).
      key: random key.

    Returns:
      float32 [B, N], 1 where a token is kept; its gradient is that of the softmax at temperature 1.
    """
    soft = jax.nn.softmax(log_probs + jax.random.gumbel(key, log_probs.shape, dtype=jnp.float32))[..., 0]
    hard = (soft > 0.5).astype(jnp.float32)
    # In brackets: the difference is exactly zero, so that nothing is dropped by a rounding error.
    return hard + (soft - jax.lax.stop_gradient(soft))


def has_package(package_weight: jax.Array) -> jax.Array:
    """Returns 1 where a package of total weight [B] is not empty, float32 [B, 1], no gradient."""
    return jax.lax.stop_gradient((package_weight > 0).astype(jnp.float32))[:, None]


def sample_decisions(
    predictor: TokenPredictor,
    x: jax.Array,
    is_kept: jax.Array,
    package_weight: jax.Array,
    key: jax.Array,
    index: int,
) -> tuple[jax.Array, jax.Array]:
    """Applies a token predictor in training and samples its decisions.

    Args:
      predictor: the token predictor.
      x: [B, 1 + P + 1, C]: CLS, patches, package.
      is_kept: float32 [B, P], which patches remain so far.
      package_weight: float32 [B], total weight of what the package holds.
      key: random key of the training step.
      index: of the predictor in its network, folded into `key`.

    Returns:
      Sampled decisions, float32 [B, P], 1 for keep, also for patches that no longer remain; and the
      probability to be kept of patches and package, float32 [B, P + 1].
    """
    is_valid = jnp.concatenate([is_kept, has_package(package_weight)], axis=1)
    log_probs, keep = predictor(x[:, 1:], is_valid)
    return gumbel_keep_mask(log_probs[:, :-1], jax.random.fold_in(key, index)), keep


def pack_dropped(
    x: jax.Array, package_weight: jax.Array, keep: jax.Array, was_kept: jax.Array, is_kept: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Adds the patches that a predictor drops to the package.

    The package is their mean, weighted by their probability to be kept.

    Args:
      x: [B, 1 + P + 1, C]: CLS, patches, package.
      package_weight: float32 [B], total weight of what the package holds.
      keep: float32 [B, P + 1], probability to be kept.
      was_kept: float32 [B, P], which patches remained before the decision.
      is_kept: float32 [B, P], which patches remain after it.

    Returns:
      The tokens with the new package, and its total weight.

    Reference: SPViT, arXiv 2112.13890, section 3.3.
    """
    weights = keep[:, :-1] * (was_kept - is_kept)
    total = package_weight + weights.sum(axis=1)
    package = package_weight[:, None] * x[:, -1] + jnp.einsum("bn,bnc->bc", weights, x[:, 1:-1])
    package = package / jnp.where(total > 0, total, 1.0)[:, None]
    return jnp.concatenate([x[:, :-1], package[:, None].astype(x.dtype)], axis=1), total


def keep_signals(keep: jax.Array) -> AttentionSignals:
    """Returns the probabilities to be kept [B, N - 1] as signals, so that methods rank by them."""
    # Methods rank tokens by the attention from CLS; CLS itself stays whatever its score.
    return AttentionSignals(*[jnp.pad(keep, ((0, 0), (1, 0)), constant_values=1.0)] * 3)
