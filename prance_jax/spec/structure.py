"""Structures: the widths, MLP sizes and keep rates that a network runs at.

A structure exists in two forms with the same fields. *Static*: Python numbers; the program is compiled for them, and
inactive channels and tokens do not exist (compact execution). *Per image*: arrays of shape [B]; shapes are full, and what
is inactive is masked (masked execution). The same code serves both.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import numpy as np

from prance_jax.core.sizes import Rate, Size


class GroupChoice(NamedTuple):
    """The choices for one group of layers.

    widths: embedding width of each layer of the group (channels).
    hidden: hidden units of each layer's MLP.
    keep: keep rates at the decision point that opens the group, as share of the tokens there (CLS counted); one for
      prune or merge, two for prune_merge (prune, then merge), none for the first group, which sees every token.
    """

    widths: tuple[Size, ...]
    mlp_dims: tuple[Size, ...]
    keep: tuple[Rate, ...] = ()


class Structure(NamedTuple):
    """One choice per group; static when every entry is a Python number."""

    groups: tuple[GroupChoice, ...]

    @property
    def widths(self) -> tuple[Size, ...]:
        return tuple(width for group in self.groups for width in group.widths)

    @property
    def mlp_dims(self) -> tuple[Size, ...]:
        return tuple(mlp_dims for group in self.groups for mlp_dims in group.mlp_dims)

    @property
    def keep(self) -> tuple[tuple[Rate, ...], ...]:
        """Keep rates per decision point (the first group has none)."""
        return tuple(group.keep for group in self.groups[1:])

    @property
    def static(self) -> bool:
        return all(isinstance(leaf, (int, float)) for leaf in jax.tree.leaves(tuple(self)))

    def image(self, index: int) -> Structure:
        """The static structure that image `index` of a per-image structure chose."""

        def pick(leaf):
            if isinstance(leaf, (int, float)):
                return leaf
            value = np.asarray(leaf)
            return (value[index] if value.ndim else value).item()

        return jax.tree.map(pick, self)

    def __str__(self) -> str:
        if not self.static:
            return f"Structure(per image, {len(self.groups)} groups)"
        parts = []
        for group in self.groups:
            keep = "".join(f" keep {rate:.3g}" for rate in group.keep)
            layers = " ".join(f"{width}/{mlp_dims}" for width, mlp_dims in zip(group.widths, group.mlp_dims))
            parts.append(f"[{layers}{keep}]")
        return " ".join(parts)
