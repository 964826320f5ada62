"""Actor and critic (PRANCE, section 3.3): two hidden layers, ReLU, orthogonal initialisation.

Layers have the names of the released PRANCE code (fc1, fc2, fc_mu or fc3), so its weight files map
one to one.
"""

from __future__ import annotations

import math

import flax.linen as nn
import jax


class Actor(nn.Module):
    """Maps an observation [B, D] to the parameters of the policy's distribution [B, outputs].

    Attributes:
      outputs: numbers that the distribution needs.
      hidden: units of each hidden layer.
    """

    outputs: int
    hidden: tuple[int, ...] = (256, 256)

    @nn.compact
    def __call__(self, observation: jax.Array) -> jax.Array:
        # A last layer near zero makes the first policy the same for every image.
        return _layer(self.outputs, 0.01, "fc_mu")(_trunk(observation, self.hidden))


class Critic(nn.Module):
    """Maps an observation [B, D] to its value [B].

    Attributes:
      hidden: units of each hidden layer.
    """

    hidden: tuple[int, ...] = (256, 256)

    @nn.compact
    def __call__(self, observation: jax.Array) -> jax.Array:
        return _layer(1, 1.0, "fc3")(_trunk(observation, self.hidden))[..., 0]


def _trunk(x: jax.Array, hidden: tuple[int, ...]) -> jax.Array:
    for index, units in enumerate(hidden):
        x = nn.relu(_layer(units, math.sqrt(2), f"fc{index + 1}")(x))
    return x


def _layer(units: int, gain: float, name: str) -> nn.Dense:
    return nn.Dense(units, kernel_init=nn.initializers.orthogonal(gain), name=name)
