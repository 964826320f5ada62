"""Two families of policies with one interface; parameters come from the actor network.

Both are frozen and hashable; all methods are pure. `output` is what the actor returns, float32 [B, outputs].
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import jax
import jax.numpy as jnp


class Distribution(Protocol):
    """A family of distributions over actions [B, components]; densities are joint over the components, [B]."""

    outputs: int

    def sample(self, output: jax.Array, key: jax.Array, std: jax.Array) -> tuple[jax.Array, jax.Array]: ...

    def log_prob(self, output: jax.Array, action: jax.Array, std: jax.Array) -> jax.Array: ...

    def entropy(self, output: jax.Array, std: jax.Array) -> jax.Array: ...

    def mode(self, output: jax.Array) -> jax.Array: ...


@dataclass(frozen=True)
class Gaussian:
    """The paper's policy: independent normals around (tanh(output) + 1) / 2, one standard deviation for all.

    Samples are raw: whoever decodes them clips to [0, 1], and the density is always that of the raw sample, so that
    clipped actions are scored consistently.
    """

    size: int

    @property
    def outputs(self) -> int:
        return self.size

    def mode(self, output: jax.Array) -> jax.Array:
        return (jnp.tanh(output) + 1) / 2

    def sample(self, output: jax.Array, key: jax.Array, std: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Raw actions float32 [B, size] and their log-densities [B]."""
        mean = self.mode(output)
        action = mean + std * jax.random.normal(key, mean.shape)
        return action, self.log_prob(output, action, std)

    def log_prob(self, output: jax.Array, action: jax.Array, std: jax.Array) -> jax.Array:
        z = (action - self.mode(output)) / std
        return jnp.sum(-0.5 * z * z - jnp.log(std) - 0.5 * math.log(2 * math.pi), axis=-1)

    def entropy(self, output: jax.Array, std: jax.Array) -> jax.Array:
        """Of the action clipped to [0, 1], up to a constant: log std minus the squared distance beyond the middle.

        The entropy of a normal does not depend on its mean, so a bonus on it has no gradient (a defect of the official
        code); what a mean near an edge loses is the variety of actions after clipping. The differential entropy is
        therefore lowered by 2 (mean - 1/2)^2 per component, which is 0 in the middle and 1/2 at an edge.
        """
        mean = self.mode(output)
        each = 0.5 * math.log(2 * math.pi * math.e) + jnp.log(std) - 2 * (mean - 0.5) ** 2
        return jnp.sum(each, axis=-1)


@dataclass(frozen=True)
class MultiCategorical:
    """Independent categoricals, one per component; logits are concatenated. Actions are int32 indices. `std` is not used."""

    sizes: tuple[int, ...]

    @property
    def outputs(self) -> int:
        return sum(self.sizes)

    def _split(self, output: jax.Array) -> list[jax.Array]:
        """Log-probabilities per component, [B, size] each."""
        ends = [sum(self.sizes[: index + 1]) for index in range(len(self.sizes))]
        return [jax.nn.log_softmax(part) for part in jnp.split(output, ends[:-1], axis=-1)]

    def mode(self, output: jax.Array) -> jax.Array:
        return jnp.stack([jnp.argmax(part, -1) for part in self._split(output)], -1).astype(jnp.int32)

    def sample(self, output: jax.Array, key: jax.Array, std: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Indices int32 [B, components] and their log-probabilities [B]."""
        keys = jax.random.split(key, len(self.sizes))
        parts = [jax.random.categorical(own, part) for own, part in zip(keys, self._split(output))]
        action = jnp.stack(parts, axis=-1).astype(jnp.int32)
        return action, self.log_prob(output, action, std)

    def log_prob(self, output: jax.Array, action: jax.Array, std: jax.Array) -> jax.Array:
        parts = self._split(output)
        taken = [
            jnp.take_along_axis(part, action[..., i : i + 1], -1)[..., 0] for i, part in enumerate(parts)
        ]
        return sum(taken)

    def entropy(self, output: jax.Array, std: jax.Array) -> jax.Array:
        return sum(-jnp.sum(jnp.exp(part) * part, axis=-1) for part in self._split(output))
