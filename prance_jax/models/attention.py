"""Multi-head attention over a token set, and the signals that token methods read from it."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from prance_jax.spec.model_spec import ModelSpec
from prance_jax.tokens.token_set import AttentionSignals, TokenSet


def rotary_angles(spec: ModelSpec, tokens: TokenSet) -> jax.Array | None:
    """Returns the angles by which queries and keys are rotated, float32 [B, N, D]; None without rotation.

    The coordinates of a patch are those of its centre, from -1 to 1 over the image; those of a token the mean over its
    patches. Prefix tokens are not rotated. Angles are 2 pi coordinate / period, the rows' before the columns', twice.

    Args:
      spec: the network; `spec.architecture.rope_temperature` is the limit of the periods.
      tokens: the tokens.

    Reference: RoFormer, arXiv 2104.09864; with two axes, DINOv3, arXiv 2508.10104.
    """
    if spec.architecture.rope_temperature is None:
        return None
    axes = [2 * (jnp.arange(side, dtype=jnp.float32) + 0.5) / side - 1 for side in spec.grid]
    centres = jnp.stack(jnp.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 2)
    # Sums, no products: they would be counted as MACs. Tokens without patches get 0.
    belongs = tokens.token_of_patch[:, :, None] == jnp.arange(tokens.features.shape[1], dtype=jnp.int32)
    num_patches = jnp.maximum(belongs.sum(axis=1), 1)[:, :, None]
    sums = [jnp.sum(jnp.where(belongs, axis[None, :, None], 0.0), axis=1) for axis in centres.T]
    coordinates = jnp.stack(sums, axis=-1) / num_patches
    quarter = spec.space.head_dim // 4
    periods = spec.architecture.rope_temperature ** (jnp.arange(quarter, dtype=jnp.float32) / quarter)
    angles = 2 * jnp.pi * coordinates[:, :, :, None] / periods
    angles = jnp.tile(angles.reshape(*coordinates.shape[:2], 2 * quarter), 2)
    is_prefix = jnp.arange(angles.shape[1], dtype=jnp.int32)[:, None] < spec.num_prefix_tokens
    return jnp.where(is_prefix, 0.0, angles)


def rotate(x: jax.Array, angles: jax.Array | None) -> jax.Array:
    """Rotates the two halves of queries or keys against each other (RoPE).

    Args:
      x: [B, H, N, D].
      angles: float32 [B, N or more, D]; None rotates nothing.
    """
    if angles is None:
        return x
    angles = angles[:, None, : x.shape[2]]
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([-second, first], axis=-1)
    return (x * jnp.cos(angles) + turned * jnp.sin(angles)).astype(x.dtype)


def key_bias(tokens: TokenSet) -> jax.Array | None:
    """Returns additive logits per key, float32 [B, N], or None if all are zero.

    A key has log(token size) (proportional attention, ToMe, arXiv 2210.09461, eq. 1), or -inf if it is invalid.
    """
    if tokens.valid is None and tokens.size is None:
        return None
    size = jnp.ones(tokens.features.shape[:2], jnp.float32) if tokens.size is None else tokens.size
    if tokens.valid is None:
        return jnp.log(size)
    return jnp.where(tokens.valid, jnp.log(jnp.where(tokens.valid, size, 1.0)), -jnp.inf)


def visible_bias(bias: jax.Array | None, policy: jax.Array | None) -> jax.Array | None:
    """Adds -inf for keys that a policy hides from the others.

    Args:
      bias: float32 [B, N] over keys, or None.
      policy: float32 [B, N], 0 for hidden keys, or None.
    """
    if policy is None:
        return bias
    return jnp.where(policy > 0, jnp.float32(0) if bias is None else bias, -jnp.inf)


def dot_product_attention(
    q: jax.Array, k: jax.Array, v: jax.Array, bias: jax.Array | None, policy: jax.Array | None = None
) -> jax.Array:
    """Computes softmax(q k^T / sqrt(D) + bias) v, the softmax in float32.

    Args:
      q: queries [B, H, Q, D], of the first Q tokens.
      k: keys [B, H, N, D].
      v: values [B, H, N, D].
      bias: float32 [B, N] over keys, or None.
      policy: float32 [B, N], 0 for a key that only its own query attends to. Unlike a bias of -inf it has a gradient
        there.

    Returns:
      [B, H, Q, D] in the type of `v`.

    Reference: the policy, DynamicViT, arXiv 2106.02034, eq. 10-11.
    """
    logits = jnp.einsum("bhnd,bhmd->bhnm", q * q.shape[-1] ** -0.5, k, preferred_element_type=jnp.float32)
    if bias is not None:
        logits = logits + bias[:, None, None, :]
    if policy is None:
        weights = jax.nn.softmax(logits, axis=-1)
    else:
        visible = policy[:, None, None, :].astype(jnp.float32)
        visible = visible + (1 - visible) * jnp.eye(*logits.shape[-2:], dtype=jnp.float32)
        # Relative to the largest visible logit, so the sum is at least 1. A hidden key counts as that one at most;
        # otherwise its gradient, an exponential of the difference, would swamp all others.
        top = jnp.max(jnp.where(visible > 0, logits, -jnp.inf), axis=-1, keepdims=True)
        difference = logits - jax.lax.stop_gradient(top)
        weights = jnp.exp(jnp.where(visible > 0, difference, jnp.minimum(difference, 0.0))) * visible
        weights = weights / weights.sum(axis=-1, keepdims=True)
    return jnp.einsum("bhnm,bhmd->bhnd", weights.astype(v.dtype), v)


def attention_signals(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array | None,
    bias: jax.Array | None,
    received: bool = False,
    has_cls: bool = True,
) -> AttentionSignals:
    """Computes attention from CLS, mean keys and value norms.

    The row of CLS is computed here once more, so that `dot_product_attention` may be any fused kernel.

    Args:
      q: queries [B, H, Q, D]; of all tokens if `received`, else CLS is enough.
      k: keys [B, H, N, D].
      v: values [B, H, N, D], or None where there are no values yet.
      bias: float32 [B, N] over keys, or None; -inf marks an invalid token, whose query does not count either.
      received: also compute the attention that each token receives, which takes the whole attention map.
      has_cls: whether token 0 is CLS; False: `cls_attention` is the attention that each token receives.
    """
    q, k = (x.astype(jnp.float32) for x in (q, k))
    values = None if v is None else jnp.sqrt(jnp.sum(jnp.square(v.astype(jnp.float32)), axis=(1, 3)))
    if not has_cls:
        importance = _received(q, k, bias)
        return AttentionSignals(importance, k.mean(axis=1), values, importance if received else None)
    logits = jnp.einsum("bhd,bhmd->bhm", q[:, :, 0] * q.shape[-1] ** -0.5, k)
    if bias is not None:
        logits = logits + bias[:, None, :]
    cls_attention = jax.nn.softmax(logits, axis=-1).mean(axis=1)
    return AttentionSignals(
        cls_attention, k.mean(axis=1), values, _received(q, k, bias) if received else None
    )


def _received(q: jax.Array, k: jax.Array, bias: jax.Array | None) -> jax.Array:
    """Mean over heads and valid queries of the attention to each key, [B, N]."""
    logits = jnp.einsum("bhnd,bhmd->bhnm", q * q.shape[-1] ** -0.5, k)
    if bias is None:
        return jax.nn.softmax(logits, axis=-1).mean(axis=(1, 2))
    counts = jnp.isfinite(bias).astype(jnp.float32)
    weights = jax.nn.softmax(logits + bias[:, None, None, :], axis=-1).mean(axis=1)
    return jnp.sum(weights * (counts / counts.sum(axis=1, keepdims=True))[:, :, None], axis=1)
