"""Structures: the widths, MLP sizes and keep rates that a network runs at.

A structure has two forms with the same fields:

- Static: Python numbers. The program is compiled for them, and unused channels and tokens are
  absent (compact execution).
- Per image: arrays of shape [B]. Arrays have their full shape, and unused parts are zeroed (masked
  execution).

The same code runs both forms.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from prance_jax.core.old_names import renamed
from prance_jax.core.sizes import Rate, Size


class GroupChoice(NamedTuple):
    """The choices for one group of layers.

    Attributes:
      widths: embedding width of each layer of the group, in channels; int or int32 [B] each.
      mlp_dims: hidden units of each layer's MLP; int or int32 [B] each.
      keep: keep rates at the decision point before the group, as shares of the tokens there, CLS
        counted. One for prune or merge, two for prune_merge (prune, then merge). Empty for the
        first group, which keeps every token.
    """

    widths: tuple[Size, ...]
    mlp_dims: tuple[Size, ...]
    keep: tuple[Rate, ...] = ()


class Structure(NamedTuple):
    """One choice for each group of layers; static when every entry is a Python number.

    Attributes:
      groups: the choices, first group first.
    """

    groups: tuple[GroupChoice, ...]

    @property
    def widths(self) -> tuple[Size, ...]:
        """Embedding width of every layer, in channels."""
        return tuple(width for group in self.groups for width in group.widths)

    hidden = renamed("hidden", "mlp_dims")

    @property
    def mlp_dims(self) -> tuple[Size, ...]:
        """Hidden units of every layer's MLP."""
        return tuple(mlp_dim for group in self.groups for mlp_dim in group.mlp_dims)

    @property
    def keep(self) -> tuple[tuple[Rate, ...], ...]:
        """Keep rates at each decision point; the first group has none."""
        return tuple(group.keep for group in self.groups[1:])

    @property
    def static(self) -> bool:
        """Whether every entry is a Python number."""
        return all(isinstance(leaf, (int, float)) for leaf in jax.tree.leaves(tuple(self)))

    def image(self, index: int) -> Structure:
        """Returns the static structure of image `index` of a per-image structure."""

        def value_of_image(leaf):
            if isinstance(leaf, (int, float)):
                return leaf
            value = np.asarray(leaf)
            return (value[index] if value.ndim else value).item()

        return jax.tree.map(value_of_image, self)

    def __str__(self) -> str:
        if not self.static:
            return f"Structure(per image, {len(self.groups)} groups)"
        parts = []
        for group in self.groups:
            keep = "".join(f" keep {rate:.3g}" for rate in group.keep)
            layers = " ".join(f"{width}/{mlp_dim}" for width, mlp_dim in zip(group.widths, group.mlp_dims))
            parts.append(f"[{layers}{keep}]")
        return " ".join(parts)


def sample_choices(
    key: jax.Array, choices: tuple[float, ...], dtype: str, shape: tuple[int, ...]
) -> jax.Array:
    """Samples uniformly; `jax.random.choice` samples other values under `jax_enable_x64`.

    Args:
      key: random key.
      choices: values to sample from.
      dtype: of the result.
      shape: of the result.
    """
    index = jax.random.randint(key, shape, 0, len(choices), dtype=jnp.int32)
    return jnp.asarray(choices, dtype)[index]
