"""Two families of policies with one interface; their parameters come from the actor network.

Both are frozen and hashable; all methods are pure. `output` is what the actor returns, float32 [B,
outputs].
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import jax
import jax.numpy as jnp


class Distribution(Protocol):
    """A family of distributions over actions [B, components].

    Densities are joint over the components, [B].

    Attributes:
      outputs: numbers that the actor must return per image.
    """

    outputs: int

    def sample(self, output: jax.Array, key: jax.Array, std: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Samples actions.

        Args:
          output: float32 [B, outputs], from the actor.
          key: random key.
          std: standard deviation of a Gaussian policy; a discrete one does not read it.

        Returns:
          Actions [B, components] and their log-densities, float32 [B].
        """

    def log_prob(self, output: jax.Array, action: jax.Array, std: jax.Array) -> jax.Array:
        """Computes log-densities of actions, float32 [B].

        Args:
          output: float32 [B, outputs], from the actor.
          action: [B, components].
          std: as in `sample`.
        """

    def entropy(self, output: jax.Array, std: jax.Array) -> jax.Array:
        """Computes the entropy, float32 [B].

        Args:
          output: float32 [B, outputs], from the actor.
          std: as in `sample`.
        """

    def mode(self, output: jax.Array) -> jax.Array:
        """Returns the most likely action [B, components]."""


@dataclass(frozen=True)
class Gaussian:
    """The paper's policy: independent normals around (tanh(output) + 1) / 2, with one deviation.

    Samples are not clipped; `ActionSpace.decode` clips them to [0, 1]. The density is always that
    of the unclipped sample, so clipped actions are scored consistently.

    Attributes:
      size: components of an action.
    """

    size: int

    @property
    def outputs(self) -> int:
        """Numbers that the actor must return per image."""
        return self.size

    def mode(self, output: jax.Array) -> jax.Array:
        """Returns the mean, float32 [B, size]."""
        return (jnp.tanh(output) + 1) / 2

    def sample(self, output: jax.Array, key: jax.Array, std: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Samples unclipped actions.

        Args:
          output: float32 [B, size].
          key: random key.
          std: float32 scalar.

        Returns:
          Actions float32 [B, size] and their log-densities, float32 [B].
        """
        mean = self.mode(output)
        action = mean + std * jax.random.normal(key, mean.shape, dtype=jnp.float32)
        return action, self.log_prob(output, action, std)

    def log_prob(self, output: jax.Array, action: jax.Array, std: jax.Array) -> jax.Array:
        """Computes log-densities of unclipped actions, float32 [B].

        Args:
          output: float32 [B, size].
          action: float32 [B, size].
          std: float32 scalar.
        """
        z = (action - self.mode(output)) / std
        return jnp.sum(-0.5 * z * z - jnp.log(std) - 0.5 * math.log(2 * math.pi), axis=-1)

    def entropy(self, output: jax.Array, std: jax.Array) -> jax.Array:
        """Approximates the entropy of the action clipped to [0, 1], up to a constant; float32 [B].

        The entropy of a normal does not depend on its mean, so a bonus on it has no gradient (a
        defect of the official code). But a mean near an edge loses variety of actions to clipping.
        The differential entropy is therefore lowered by 2 (mean - 1/2)^2 per component, which is 0
        in the middle and 1/2 at an edge.

        Args:
          output: float32 [B, size].
          std: float32 scalar.
        """
        mean = self.mode(output)
        per_component = 0.5 * math.log(2 * math.pi * math.e) + jnp.log(std) - 2 * (mean - 0.5) ** 2
        return jnp.sum(per_component, axis=-1)


@dataclass(frozen=True)
class MultiCategorical:
    """Independent categoricals, one per component; actions are int32 indices.

    The logits of all components are concatenated in `output`.

    Attributes:
      nvec: number of choices per component, as in gymnasium's MultiDiscrete.
    """

    nvec: tuple[int, ...]

    @property
    def outputs(self) -> int:
        """Numbers that the actor must return per image."""
        return sum(self.nvec)

    def _log_probs(self, output: jax.Array) -> list[jax.Array]:
        """Log-probabilities of every choice: [B, choices] per component."""
        ends = [sum(self.nvec[: index + 1]) for index in range(len(self.nvec))]
        return [jax.nn.log_softmax(logits) for logits in jnp.split(output, ends[:-1], axis=-1)]

    def mode(self, output: jax.Array) -> jax.Array:
        """Returns the most likely index of every component, int32 [B, components]."""
        return jnp.stack([jnp.argmax(log_probs, -1) for log_probs in self._log_probs(output)], -1).astype(
            jnp.int32
        )

    def sample(self, output: jax.Array, key: jax.Array, std: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Samples indices.

        Args:
          output: float32 [B, outputs], logits.
          key: random key.
          std: not used.

        Returns:
          Indices int32 [B, components] and their log-probabilities, float32 [B].
        """
        keys = jax.random.split(key, len(self.nvec))
        columns = [
            jax.random.categorical(column_key, log_probs)
            for column_key, log_probs in zip(keys, self._log_probs(output))
        ]
        action = jnp.stack(columns, axis=-1).astype(jnp.int32)
        return action, self.log_prob(output, action, std)

    def log_prob(self, output: jax.Array, action: jax.Array, std: jax.Array) -> jax.Array:
        """Computes log-probabilities of indices, float32 [B].

        Args:
          output: float32 [B, outputs], logits.
          action: int32 [B, components].
          std: not used.
        """
        return sum(
            jnp.take_along_axis(log_probs, action[..., i : i + 1], -1)[..., 0]
            for i, log_probs in enumerate(self._log_probs(output))
        )

    def entropy(self, output: jax.Array, std: jax.Array) -> jax.Array:
        """Computes the entropy, float32 [B].

        Args:
          output: float32 [B, outputs], logits.
          std: not used.
        """
        return sum(-jnp.sum(jnp.exp(log_probs) * log_probs, axis=-1) for log_probs in self._log_probs(output))
