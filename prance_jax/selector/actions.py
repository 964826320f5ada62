"""From actions of the policy to choices of the network (PRANCE, section 3.3).

An action has one component per MLP ratio, then one per embedding width, of the layers of the next
group, then the keep rate(s) of the decision point. There are two families:

* continuous (the paper's, for the Gaussian policy): components in [0, 1]. A choice is index round(a
  x (choices - 1)), halves to even. A keep rate is used as it is.
* discrete (default, for the multi-categorical policy): components are indices, also of the keep
  rate. So the number of possible choices is finite, which buckets need.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from prance_jax.core.errors import UserError
from prance_jax.spec.search_space import SearchSpace, check_keep_rate
from prance_jax.spec.structure import GroupChoice


def check_keep_choices(choices: tuple[float, ...]) -> None:
    """Checks that keep rates are at least one, ascending and without repeats.

    Raises:
      UserError: they are not, or one is not a keep rate.
    """
    check_keep_rate(choices, "keep_choices")
    if not choices or list(choices) != sorted(set(choices)):
        raise UserError(f"keep_choices={choices} must be ascending, without repeats, at least one")


@dataclass(frozen=True)
class ActionSpace:
    """The meaning of one action: which components it has and what they choose.

    Attributes:
      space: search space of the network; gives widths, MLP ratios and layers per group.
      rates: number of keep rates per decision point.
      keep_choices: keep rates to choose from, one ascending tuple per rate; None makes actions
        continuous.
    """

    space: SearchSpace
    rates: int
    keep_choices: tuple[tuple[float, ...], ...] | None = None

    def __post_init__(self):
        if self.keep_choices is None:
            return
        if len(self.keep_choices) != self.rates or not all(self.keep_choices):
            raise UserError(
                f"keep_choices={self.keep_choices}: this token optimization needs {self.rates} "
                "non-empty tuple(s)"
            )
        for choices in self.keep_choices:
            check_keep_choices(choices)

    @property
    def layers(self) -> int:
        """Layers that an action covers; a shorter group reads the first ones."""
        return max(self.space.layers[1:])

    @property
    def nvec(self) -> tuple[int, ...]:
        """Number of choices per component, as in gymnasium's MultiDiscrete."""
        if self.keep_choices is None:
            raise UserError("a continuous action has no number of choices: give keep_choices")
        channels = (len(self.space.ratios),) * self.layers + (len(self.space.widths),) * self.layers
        return channels + tuple(len(choices) for choices in self.keep_choices)

    @property
    def components(self) -> int:
        """Length of an action."""
        return 2 * self.layers + self.rates

    def decode(self, action: jax.Array, group: int) -> GroupChoice:
        """Translates actions into the choice for one group.

        Args:
          action: float32 [B, components] in [0, 1], or int32 indices if discrete; values outside
            are clipped.
          group: group that the choice is for, from 1.

        Returns:
          Widths and MLP sizes, int32 [B] per layer, and keep rates, float32 [B] each.
        """
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
        """Values of the chosen indices, [B, layers]."""
        last = len(choices) - 1
        index = action if self.keep_choices is not None else jnp.round(jnp.clip(action, 0.0, 1.0) * last)
        return jnp.asarray(choices, dtype)[jnp.clip(index.astype(jnp.int32), 0, last)]
