"""What the selector observes at a decision point."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import optax

from prance_jax.core.errors import UserError
from prance_jax.models.elastic import broadcast_width, mask_channels
from prance_jax.models.heads import mean_of_patches
from prance_jax.models.outputs import GroupState
from prance_jax.selector.cost_weight import cost_weight_to_asinh
from prance_jax.spec.model_spec import ModelSpec

KINDS = ("keys", "lean", "rich")


@dataclass(frozen=True)
class ObservationEncoder:
    """Turns the state of inference before a decision into one vector per image.

    Kinds of observation:

    * 'keys', the paper's: keys of the last block averaged over heads and channels, one number per
      token in current order, zero-padded to the original token count.
    * 'lean', a few numbers that tell most about an image: confidence of the classifier on the class
      token as it is now (for segmentation see `ViT.early_logits`), sharpness of the attention from
      CLS, shares of tokens and width that remain, and the index of the decision.
    * 'rich', both, with the normalised class token and the attention from CLS to every token.

    A network that classifies the mean of the patches has it in place of the class token; without CLS the
    attention is that which tokens receive.

    Attributes:
      spec: the network.
      kind: 'keys', 'lean' or 'rich'.
      sees_cost_weight: the cost weight, on the asinh scale, is the last number; so one selector
        serves every budget.
    """

    spec: ModelSpec
    kind: str = "rich"
    sees_cost_weight: bool = False

    def __post_init__(self):
        if not self.spec.num_classes and self.kind != "keys":
            raise UserError(
                f"selector state {self.kind!r} needs the confidence of a classifier, and num_classes=0 has none; "
                "set 'keys', or num_classes to the number of classes"
            )
        if self.kind not in KINDS:
            raise UserError(f"selector state {self.kind!r} is not known; choose from {', '.join(KINDS)}")

    @property
    def size(self) -> int:
        """Length D of the vector."""
        tokens, space = self.spec.tokens, self.spec.space
        lean = 6 + space.groups - 1
        sizes = {"keys": tokens, "lean": lean, "rich": 2 * tokens + space.max_width + lean}
        return sizes[self.kind] + self.sees_cost_weight

    def __call__(self, state: GroupState, group: int, cost_weight: jax.Array | None = None) -> jax.Array:
        """Encodes a state; no gradient flows into the network.

        Args:
          state: state of inference before the decision.
          group: the group to decide on, from 1.
          cost_weight: float32, scalar or [B]; required if `sees_cost_weight`, else not read.

        Returns:
          float32 [B, size].

        Raises:
          UserError: the cost weight is required and missing.
        """
        state = jax.lax.stop_gradient(state)
        parts = []
        if self.kind != "lean":
            parts.append(self._per_token(state, state.signals.keys.mean(axis=-1)))
        if self.kind != "keys":
            cls_attention = self._cls_attention(state)
            if self.kind == "rich":
                parts += [cls_attention, self._class_token(state)]
            parts.append(self._lean(state, group, cls_attention))
        observation = jnp.concatenate(parts, axis=1)
        if not self.sees_cost_weight:
            return observation
        if cost_weight is None:
            raise UserError("this selector was trained for every budget: it needs a cost weight")
        scaled = jnp.broadcast_to(cost_weight_to_asinh(cost_weight), observation.shape[:1])
        return jnp.concatenate([observation, scaled[:, None]], axis=1)

    def _cls_attention(self, state: GroupState) -> jax.Array:
        """Attention from CLS times the token count, so near one for any count: [B, tokens]."""
        attention = self._per_token(state, state.signals.cls_attention)
        return attention * jnp.reshape(jnp.asarray(state.tokens.count, jnp.float32), (-1, 1))

    def _lean(self, state: GroupState, group: int, attention: jax.Array) -> jax.Array:
        """Shares of tokens and width, attention sharpness, confidence, one-hot decision."""
        space, batch = self.spec.space, attention.shape[0]
        count = jnp.broadcast_to(jnp.asarray(state.tokens.count, jnp.float32), (batch,))
        sharpness = jnp.sum(attention**2, axis=1) / count
        width = jnp.broadcast_to(broadcast_width(state.width, 1) / space.max_width, (batch,))
        decision = jnp.broadcast_to(
            jax.nn.one_hot(group - 1, space.groups - 1, dtype=jnp.float32), (batch, space.groups - 1)
        )
        shares = jnp.stack([count / self.spec.tokens, sharpness, width], axis=1)
        return jnp.concatenate([shares, _confidence(self.spec, state.early_logits), decision], axis=1)

    def _per_token(self, state: GroupState, values: jax.Array) -> jax.Array:
        """Values of valid tokens, zero-padded to the original token count: [B, tokens]."""
        if state.tokens.valid is not None:
            values = jnp.where(state.tokens.valid, values, 0.0)
        return jnp.pad(values, ((0, 0), (0, self.spec.tokens - values.shape[1])))

    def _class_token(self, state: GroupState) -> jax.Array:
        """CLS, or the mean of the patches, scaled to unit mean square over its active channels: [B, max_width]."""
        x = state.tokens.features[:, 0]
        if self.spec.architecture.global_pool != "token":
            x = mean_of_patches(self.spec, state.tokens, state.tokens.features)[:, 0]
        x = mask_channels(x.astype(jnp.float32), state.width)
        x = x * jax.lax.rsqrt(jnp.sum(x * x, -1, keepdims=True) / broadcast_width(state.width, 2) + 1e-6)
        return jnp.pad(x, ((0, 0), (0, self.spec.space.max_width - x.shape[1])))


def _confidence(spec: ModelSpec, logits: jax.Array) -> jax.Array:
    """Largest probability, its margin over the second, entropy over its maximum: [B, 3].

    With several labels per image: largest probability, smallest margin of a class between yes and no, mean
    entropy over its maximum.
    """
    logits = logits.astype(jnp.float32)
    if spec.multi_label:
        prob = jax.nn.sigmoid(logits)
        entropy = optax.sigmoid_binary_cross_entropy(logits, prob).mean(axis=-1) / jnp.log(2.0)
        return jnp.stack([prob.max(axis=-1), jnp.abs(2 * prob - 1).min(axis=-1), entropy], axis=1)
    log_prob = jax.nn.log_softmax(logits)
    classes = log_prob.shape[-1]
    top = jax.lax.top_k(jnp.exp(log_prob), min(2, classes))[0]
    entropy = -jnp.sum(jnp.exp(log_prob) * log_prob, axis=-1) / jnp.log(jnp.float32(max(classes, 2)))
    return jnp.stack([top[:, 0], top[:, 0] - top[:, -1], entropy], axis=1)


def mlp_macs(observation: int, hidden: tuple[int, ...], outputs: int) -> int:
    """Counts the multiply-accumulates of one pass through the actor.

    Args:
      observation: length of the observation.
      hidden: units of each hidden layer.
      outputs: outputs of the last layer.

    Returns:
      MACs of one decision, without biases and activations.
    """
    sizes = (observation, *hidden, outputs)
    return sum(inputs * units for inputs, units in zip(sizes, sizes[1:]))
