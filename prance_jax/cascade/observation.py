"""What a decision at an exit is based on: how sure the answer is, and what it cost."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from prance_jax.models.outputs import GroupState
from prance_jax.selector.cost_weight import cost_weight_to_asinh
from prance_jax.spec.cascade import Cascade

_TOP = 3
NUM_FEATURES = _TOP + 5
"""Numbers that `exit_features` returns per image."""
LARGEST_PROBABILITY = 0
"""Index of the largest class probability among them: the confidence of an answer."""


def exit_features(logits: jax.Array, before: jax.Array | None, state: GroupState) -> jax.Array:
    """Summarises an answer: no gradient flows into the network.

    Args:
      logits: float32 [B, num_classes], the answer.
      before: answer at the exit before, shaped like `logits`; None at the first exit.
      state: state of inference at the exit.

    Returns:
      float32 [B, NUM_FEATURES]: the three largest probabilities, margin of the first two, entropy over its maximum,
      overlap with the distribution of the answer before (0 at the first exit), whether both predict the same class,
      sharpness of the attention from CLS.
    """
    logits, before, state = jax.lax.stop_gradient((logits, before, state))
    log_prob = jax.nn.log_softmax(logits.astype(jnp.float32))
    prob, classes = jnp.exp(log_prob), logits.shape[-1]
    top = jax.lax.top_k(prob, min(_TOP, classes))[0]
    top = jnp.pad(top, [(0, 0), (0, _TOP - top.shape[-1])])
    entropy = -jnp.sum(prob * log_prob, axis=-1) / jnp.log(jnp.float32(max(classes, 2)))
    if before is None:
        overlap = agrees = jnp.zeros_like(entropy)
    else:
        overlap = jnp.minimum(prob, jax.nn.softmax(before.astype(jnp.float32))).sum(-1)
        agrees = (logits.argmax(-1) == before.argmax(-1)).astype(jnp.float32)
    sharpness = jnp.sum(state.signals.cls_attention.astype(jnp.float32) ** 2, axis=1)
    others = top[:, 0] - top[:, 1], entropy, overlap, agrees, sharpness
    return jnp.concatenate([top, jnp.stack(others, axis=1)], axis=1)


def observation_size(cascade: Cascade) -> int:
    """Returns the length of an observation."""
    return NUM_FEATURES + cascade.num_nodes + 1


def observe(cascade: Cascade, node: jax.Array, features: jax.Array, cost_weight: jax.Array) -> jax.Array:
    """Builds the observation of a decision.

    Args:
      cascade: the tree.
      node: int32 [B], where the images are.
      features: float32 [B, NUM_FEATURES], of the answers there; zero at the start.
      cost_weight: float32, scalar or [B]; on the asinh scale it is the last number.

    Returns:
      float32 [B, observation_size].
    """
    scaled = jnp.broadcast_to(cost_weight_to_asinh(cost_weight), node.shape)
    return jnp.concatenate(
        [features, jax.nn.one_hot(node, cascade.num_nodes, dtype=jnp.float32), scaled[:, None]], axis=1
    )
