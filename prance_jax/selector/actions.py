"""From actions of the policy to choices of the network (PRANCE, section 3.3).

An action has one component per MLP ratio, then one per embedding width, of the layers of the next group, then the
keep rate(s) of the decision point. Two families:

* continuous (the paper's, for the Gaussian policy): components in [0, 1]; a choice is index round(a x (choices - 1)),
  halves to even; a keep rate is used as it is;
* lattice (default, for the categorical policy): components are indices, also of the keep rate, so that what can be
  chosen is finite and can be served.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from prance_jax.core.errors import UserError
from prance_jax.spec.search_space import SearchSpace, check_keep_rate
from prance_jax.spec.structure import GroupChoice


def check_keep_choices(choices: tuple[float, ...]) -> None:
    """Raises UserError unless these are keep rates in ascending order, at least one."""
    check_keep_rate(choices, "keep_choices")
    if not choices or list(choices) != sorted(set(choices)):
        raise UserError(f"keep_choices={choices} must be ascending, without repeats, at least one")


@dataclass(frozen=True)
class ActionSpace:
    """What one action means.

    keep_choices: the lattice of keep rates, one ascending tuple per rate; None makes actions continuous, with
      `rates` keep rates.
    """

    space: SearchSpace
    rates: int
    keep_choices: tuple[tuple[float, ...], ...] | None = None

    def __post_init__(self):
        if self.keep_choices is None:
            return
        if len(self.keep_choices) != self.rates or not all(self.keep_choices):
            raise UserError(
                f"keep_choices={self.keep_choices}: this token optimization needs {self.rates} non-empty tuple(s)"
            )
        for choices in self.keep_choices:
            check_keep_choices(choices)

    @property
    def layers(self) -> int:
        """Layers that an action speaks of; a shorter group reads the first ones."""
        return max(self.space.layers[1:])

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of choices per component of the lattice."""
        if self.keep_choices is None:
            raise UserError("a continuous action has no lattice: give keep_choices")
        channels = (len(self.space.ratios),) * self.layers + (len(self.space.widths),) * self.layers
        return channels + tuple(len(choices) for choices in self.keep_choices)

    @property
    def components(self) -> int:
        return 2 * self.layers + self.rates

    def decode(self, action: jax.Array, group: int) -> GroupChoice:
        """The choice for `group` (1, 2, ...). action: float [B, components] in [0, 1], or int32 indices; others are clipped."""
        count = self.space.layers[group]
        ratios = self._pick(action[:, :count], self.space.ratios, jnp.float32)
        widths = self._pick(action[:, self.layers : self.layers + count], self.space.widths, jnp.int32)
        keep = action[:, 2 * self.layers :]
        if self.keep_choices is None:
            rates = tuple(jnp.clip(keep, 0.0, 1.0).astype(jnp.float32).T)
        else:
            rates = tuple(
                jnp.asarray(choices, jnp.float32)[jnp.clip(keep[:, index], 0, len(choices) - 1)]
                for index, choices in enumerate(self.keep_choices)
            )
        return GroupChoice(tuple(widths.T), tuple(self.space.mlp_dim(widths, ratios).T), rates)

    def _pick(self, action: jax.Array, choices: tuple, dtype) -> jax.Array:
        last = len(choices) - 1
        index = action if self.keep_choices is not None else jnp.round(jnp.clip(action, 0.0, 1.0) * last)
        return jnp.asarray(choices, dtype)[jnp.clip(index.astype(jnp.int32), 0, last)]
