"""What the selector sees at a decision point."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from prance_jax.errors import UserError
from prance_jax.models.elastic import active, spread
from prance_jax.models.vit import Midway
from prance_jax.spec import ModelSpec


@dataclass(frozen=True)
class Observer:
    """Turns the state of inference before a decision into one vector per image.

    kind 'keys' is the paper's state: keys of the last block averaged over heads and channels, one number per token in
    current order, zero-padded to the original token count. 'rich' adds what that lacks: the normalised class token,
    attention from CLS, the shares of tokens and width that are left, and which decision this is.
    """

    spec: ModelSpec
    kind: str = "rich"

    def __post_init__(self):
        if self.kind not in ("keys", "rich"):
            raise UserError(f"selector state {self.kind!r} is not known; say 'keys' or 'rich'")

    @property
    def size(self) -> int:
        """Length of the vector."""
        tokens, space = self.spec.tokens, self.spec.space
        return tokens if self.kind == "keys" else 2 * tokens + space.widest + 3 + space.groups - 1

    def __call__(self, midway: Midway, group: int) -> jax.Array:
        """float32 [B, size]. group: the group to decide on (1, 2, ...). No gradient flows into the network."""
        midway = jax.lax.stop_gradient(midway)
        keys = self._per_token(midway, midway.signals.keys.mean(axis=-1))
        if self.kind == "keys":
            return keys
        space, batch = self.spec.space, keys.shape[0]
        cls_attention = self._per_token(midway, midway.signals.cls_attention)
        # Shares of attention shrink with the number of tokens; times the count they are near one.
        count = jnp.broadcast_to(jnp.asarray(midway.tokens.count, jnp.float32), (batch,))
        sharpness = jnp.sum(cls_attention**2, axis=1) * count
        shares = jnp.stack(
            [
                count / self.spec.tokens,
                sharpness,
                jnp.broadcast_to(spread(midway.width, 1) / space.widest, (batch,)),
            ],
            axis=1,
        )
        which = jnp.broadcast_to(jax.nn.one_hot(group - 1, space.groups - 1), (batch, space.groups - 1))
        return jnp.concatenate(
            [keys, cls_attention * count[:, None], self._class_token(midway), shares, which], axis=1
        )

    def _per_token(self, midway: Midway, values: jax.Array) -> jax.Array:
        if midway.tokens.valid is not None:
            values = jnp.where(midway.tokens.valid, values, 0.0)
        return jnp.pad(values, ((0, 0), (0, self.spec.tokens - values.shape[1])))

    def _class_token(self, midway: Midway) -> jax.Array:
        """[B, widest]: CLS scaled to unit mean square over its active channels."""
        x = active(midway.tokens.features[:, 0].astype(jnp.float32), midway.width)
        x = x * jax.lax.rsqrt(jnp.sum(x * x, -1, keepdims=True) / spread(midway.width, 2) + 1e-6)
        return jnp.pad(x, ((0, 0), (0, self.spec.space.widest - x.shape[1])))


def decision_macs(observation: int, hidden: tuple[int, ...], outputs: int) -> int:
    """Multiply-accumulates of one pass through the actor."""
    sizes = (observation, *hidden, outputs)
    return sum(a * b for a, b in zip(sizes, sizes[1:]))
