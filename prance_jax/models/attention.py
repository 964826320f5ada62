"""Multi-head attention over a token set, and what it tells the token methods."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from prance_jax.tokens.token_set import AttentionSignals, TokenSet


def key_bias(tokens: TokenSet) -> jax.Array | None:
    """Additive logits per key, float32 [B, N]: log(token size) (proportional attention), -inf for invalid tokens."""
    if tokens.valid is None and tokens.size is None:
        return None
    size = jnp.ones(tokens.features.shape[:2], jnp.float32) if tokens.size is None else tokens.size
    if tokens.valid is None:
        return jnp.log(size)
    return jnp.where(tokens.valid, jnp.log(jnp.where(tokens.valid, size, 1.0)), -jnp.inf)


def visible_bias(bias: jax.Array | None, policy: jax.Array | None) -> jax.Array | None:
    """The bias with -inf for keys that a policy hides from the others."""
    if policy is None:
        return bias
    return jnp.where(policy > 0, 0.0 if bias is None else bias, -jnp.inf)


def dot_product_attention(
    q: jax.Array, k: jax.Array, v: jax.Array, bias: jax.Array | None, policy: jax.Array | None = None
) -> jax.Array:
    """softmax(q k^T / sqrt(D) + bias) v, softmax in float32. q, k, v: [B, H, N, D]; bias: [B, N] over keys.

    policy: [B, N], 0 for keys that only they themselves attend to (DynamicViT, arXiv 2106.02034, eq. 10-11): unlike a
    bias of -inf it has a gradient there.
    """
    logits = jnp.einsum("bhnd,bhmd->bhnm", q * q.shape[-1] ** -0.5, k, preferred_element_type=jnp.float32)
    if bias is not None:
        logits = logits + bias[:, None, None, :]
    if policy is None:
        weights = jax.nn.softmax(logits, axis=-1)
    else:
        seen = policy[:, None, None, :].astype(jnp.float32)
        seen = seen + (1 - seen) * jnp.eye(logits.shape[-1])
        # Against the largest logit that is seen: the sum is 1 at least. A hidden key counts as that one at most, else its
        # gradient, an exponential of its lead, would drown all others; seen or not, it can change the mean only so much.
        top = jnp.max(jnp.where(seen > 0, logits, -jnp.inf), axis=-1, keepdims=True)
        apart = logits - jax.lax.stop_gradient(top)
        weights = jnp.exp(jnp.where(seen > 0, apart, jnp.minimum(apart, 0.0))) * seen
        weights = weights / weights.sum(axis=-1, keepdims=True)
    return jnp.einsum("bhnm,bhmd->bhnd", weights.astype(v.dtype), v)


def attention_signals(
    q: jax.Array, k: jax.Array, v: jax.Array | None, bias: jax.Array | None, received: bool = False
) -> AttentionSignals:
    """CLS attention, mean keys and value norms. One query row of its own, so that `attend` may be any fused kernel.

    v: None where there are no values yet. received: also the attention that each token receives, which takes the whole map.
    bias is over keys [B, N]; queries of invalid tokens, whose bias is -inf, do not count."""
    q, k = (x.astype(jnp.float32) for x in (q, k))
    logits = jnp.einsum("bhd,bhmd->bhm", q[:, :, 0] * q.shape[-1] ** -0.5, k)
    if bias is not None:
        logits = logits + bias[:, None, :]
    cls_attention = jax.nn.softmax(logits, axis=-1).mean(axis=1)
    values = None if v is None else jnp.sqrt(jnp.sum(jnp.square(v.astype(jnp.float32)), axis=(1, 3)))
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
