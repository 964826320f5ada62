"""What the selector sees at a decision point."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from prance_jax.core.errors import UserError
from prance_jax.models.elastic import broadcast_width, mask_channels
from prance_jax.models.vit import GroupState
from prance_jax.selector.cost_weight import cost_weight_level
from prance_jax.spec.model_spec import ModelSpec

KINDS = ("keys", "lean", "rich")


@dataclass(frozen=True)
class ObservationEncoder:
    """Turns the state of inference before a decision into one vector per image.

    kind 'keys' is the paper's state: keys of the last block averaged over heads and channels, one number per token in
    current order, zero-padded to the original token count. 'lean' is what tells most about an image in few numbers: how
    sure the classifier would be of the class token as it is now (for pixels see `ViT.glance`), how sharp attention from
    CLS is, the shares of tokens and width that are left, and which decision this is. 'rich' is both, with the normalised
    class token and attention from CLS to every token.

    priced: the price of compute is seen as well (its level, last), so that one selector serves every budget.
    """

    spec: ModelSpec
    kind: str = "rich"
    sees_cost_weight: bool = False

    def __post_init__(self):
        if self.kind not in KINDS:
            raise UserError(f"selector state {self.kind!r} is not known; choose from {', '.join(KINDS)}")

    @property
    def size(self) -> int:
        """Length of the vector."""
        tokens, space = self.spec.tokens, self.spec.space
        lean = 6 + space.groups - 1
        sizes = {"keys": tokens, "lean": lean, "rich": 2 * tokens + space.max_width + lean}
        return sizes[self.kind] + self.sees_cost_weight

    def __call__(self, state: GroupState, group: int, cost_weight: jax.Array | None = None) -> jax.Array:
        """float32 [B, size]. group: the group to decide on (1, 2, ...). No gradient flows into the network.

        price: scalar or [B]; needed where `priced`, else not read.
        """
        state = jax.lax.stop_gradient(state)
        parts = []
        if self.kind != "lean":
            parts.append(self._per_token(state, state.signals.keys.mean(axis=-1)))
        if self.kind != "keys":
            cls_attention = self._attention(state)
            if self.kind == "rich":
                parts += [cls_attention, self._class_token(state)]
            parts.append(self._lean(state, group, cls_attention))
        seen = jnp.concatenate(parts, axis=1)
        if not self.sees_cost_weight:
            return seen
        if cost_weight is None:
            raise UserError("this selector was trained for every budget: it needs the price of compute")
        shown = jnp.broadcast_to(cost_weight_level(cost_weight), seen.shape[:1])
        return jnp.concatenate([seen, shown[:, None]], axis=1)

    def _attention(self, state: GroupState) -> jax.Array:
        """[B, tokens]: shares of attention shrink with the number of tokens; times the count they are near one."""
        attention = self._per_token(state, state.signals.cls_attention)
        return attention * jnp.reshape(jnp.asarray(state.tokens.count, jnp.float32), (-1, 1))

    def _lean(self, state: GroupState, group: int, attention: jax.Array) -> jax.Array:
        space, batch = self.spec.space, attention.shape[0]
        count = jnp.broadcast_to(jnp.asarray(state.tokens.count, jnp.float32), (batch,))
        sharpness = jnp.sum(attention**2, axis=1) / count
        width = jnp.broadcast_to(broadcast_width(state.width, 1) / space.max_width, (batch,))
        which = jnp.broadcast_to(jax.nn.one_hot(group - 1, space.groups - 1), (batch, space.groups - 1))
        shares = jnp.stack([count / self.spec.tokens, sharpness, width], axis=1)
        return jnp.concatenate([shares, _sureness(state.early_logits), which], axis=1)

    def _per_token(self, state: GroupState, values: jax.Array) -> jax.Array:
        if state.tokens.valid is not None:
            values = jnp.where(state.tokens.valid, values, 0.0)
        return jnp.pad(values, ((0, 0), (0, self.spec.tokens - values.shape[1])))

    def _class_token(self, state: GroupState) -> jax.Array:
        """[B, widest]: CLS scaled to unit mean square over its active channels."""
        x = mask_channels(state.tokens.features[:, 0].astype(jnp.float32), state.width)
        x = x * jax.lax.rsqrt(jnp.sum(x * x, -1, keepdims=True) / broadcast_width(state.width, 2) + 1e-6)
        return jnp.pad(x, ((0, 0), (0, self.spec.space.max_width - x.shape[1])))


def _sureness(logits: jax.Array) -> jax.Array:
    """[B, 3]: largest probability, its lead over the second, and the entropy as a share of the largest possible one."""
    log = jax.nn.log_softmax(logits.astype(jnp.float32))
    classes = log.shape[-1]
    first = jax.lax.top_k(jnp.exp(log), min(2, classes))[0]
    entropy = -jnp.sum(jnp.exp(log) * log, axis=-1) / jnp.log(max(classes, 2))
    return jnp.stack([first[:, 0], first[:, 0] - first[:, -1], entropy], axis=1)


def mlp_macs(observation: int, hidden: tuple[int, ...], outputs: int) -> int:
    """Multiply-accumulates of one pass through the actor."""
    sizes = (observation, *hidden, outputs)
    return sum(a * b for a, b in zip(sizes, sizes[1:]))
