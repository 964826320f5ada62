"""Optimizers of optax in 32 bits."""

from __future__ import annotations

import jax
import optax


def in_32_bits(transform: optax.GradientTransformation) -> optax.GradientTransformation:
    """Returns the same optimizer; under `jax_enable_x64` optax would compute schedules and moments in 64 bits.

    The state has the same types and the updates the same values with and without the flag.

    Args:
      transform: an optimizer; parameters and gradients are float32.
    """

    def init(params):
        with jax.enable_x64(False):
            return transform.init(params)

    def update(updates, state, params=None):
        with jax.enable_x64(False):
            return transform.update(updates, state, params)

    return optax.GradientTransformation(init, update)
