"""Search spaces: the structures that one set of weights holds.

Reference: PRANCE, arXiv 2407.05010, section 3 and table 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from prance_jax.core.errors import UserError
from prance_jax.core.old_names import renamed
from prance_jax.core.sizes import Rate, Size
from prance_jax.spec.structure import GroupChoice, Structure, sample_choices


@dataclass(frozen=True)
class SearchSpace:
    """The structures that one set of weights holds.

    Attributes:
      name: of the space.
      super_width: embedding width of the stored weights, in channels.
      super_ratio: MLP ratio (hidden units / width) of the stored weights.
      heads: attention heads of every layer.
      widths: embedding widths that a layer can have, ascending, in channels.
      ratios: MLP ratios that a layer can have, ascending.
      layers: layers of each group. A decision point precedes every group but the first.
      head_dim: channels of one head; q, k and v always have heads x head_dim channels.

    Raises:
      UserError: a width or ratio exceeds the stored weights, or a group has too few layers.
    """

    name: str
    super_width: int
    super_ratio: float
    heads: int
    widths: tuple[int, ...]
    ratios: tuple[float, ...]
    layers: tuple[int, ...] = (3, 3, 3, 3)
    head_dim: int = 64

    def __post_init__(self):
        where = f"search space {self.name!r}"
        for field, choices, limit in (
            ("widths", self.widths, self.super_width),
            ("ratios", self.ratios, self.super_ratio),
        ):
            if not choices or list(choices) != sorted(set(choices)) or choices[0] <= 0:
                raise UserError(f"{where}: {field}={choices} must be positive, ascending, without repeats")
            if choices[-1] > limit:
                raise UserError(f"{where}: {field} go up to {choices[-1]}, but the weights stop at {limit}")
        if not self.layers or min(self.layers) < 1 or min(self.layers[1:-1], default=2) < 2:
            raise UserError(
                f"{where}: layers={self.layers} needs a layer in the first and last group and two in the "
                "others (the next decision uses the attention of a layer over the kept tokens only)"
            )

    @property
    def depth(self) -> int:
        """Number of layers."""
        return sum(self.layers)

    @property
    def groups(self) -> int:
        """Number of groups of layers."""
        return len(self.layers)

    @property
    def first_layers(self) -> tuple[int, ...]:
        """Index of the first layer of each group: 0, then the decision points."""
        return tuple(sum(self.layers[:group]) for group in range(self.groups))

    @property
    def last_layers(self) -> tuple[int, ...]:
        """Index of the last layer of each group."""
        return tuple(sum(self.layers[: group + 1]) - 1 for group in range(self.groups))

    widest = renamed("widest", "max_width")
    most_hidden = renamed("most_hidden", "max_mlp_dim")
    structures = renamed("structures", "num_structures")

    @property
    def max_width(self) -> int:
        """Largest width of a structure, in channels; may be smaller than the stored width."""
        return self.widths[-1]

    @property
    def max_mlp_dim(self) -> int:
        """Largest number of hidden units of a structure's MLP."""
        return self.mlp_dim(self.widths[-1], self.ratios[-1])

    @property
    def attention_width(self) -> int:
        """Channels of q, k and v: heads x head_dim."""
        return self.heads * self.head_dim

    @property
    def num_structures(self) -> int:
        """Number of choices of widths and MLP sizes, keep rates not counted; 15**12 for `base`."""
        return (len(self.widths) * len(self.ratios)) ** self.depth

    @staticmethod
    def mlp_dim(width: Size, ratio: Rate) -> Size:
        """Computes the hidden units of an MLP: floor(width x ratio).

        Args:
          width: embedding width, in channels; int or int32 [B].
          ratio: MLP ratio; float or float32 [B].

        Returns:
          int if both arguments are Python numbers, else int32 [B].
        """
        if isinstance(width, int) and isinstance(ratio, (int, float)):
            return math.floor(width * ratio)
        return jnp.floor(jnp.asarray(width) * jnp.asarray(ratio, jnp.float32)).astype(jnp.int32)

    @staticmethod
    def ratio(width: int, mlp_dim: int) -> float:
        """Computes the MLP ratio with floor(width x ratio) = mlp_dim.

        Args:
          width: embedding width, in channels.
          mlp_dim: hidden units.

        Returns:
          The quotient, or the next float above it where it was rounded too low.
        """
        quotient = mlp_dim / width
        return quotient if math.floor(width * quotient) == mlp_dim else math.nextafter(quotient, math.inf)

    def uniform(self, width: int, ratio: float, keep: tuple[float, ...] = (1.0,)) -> Structure:
        """Builds the static structure with the same width, MLP ratio and keep rates everywhere.

        Args:
          width: embedding width of every layer, in channels.
          ratio: MLP ratio of every layer.
          keep: keep rates of every decision point.

        Returns:
          The structure, not checked.
        """
        mlp_dim = self.mlp_dim(width, ratio)
        return Structure(
            tuple(
                GroupChoice((width,) * num_layers, (mlp_dim,) * num_layers, tuple(keep) if group else ())
                for group, num_layers in enumerate(self.layers)
            )
        )

    def largest(self, rates: int = 1) -> Structure:
        """Returns the largest structure: widest layers and MLPs, all tokens.

        Args:
          rates: number of keep rates of a decision point, 2 for prune_merge.
        """
        return self.uniform(self.widths[-1], self.ratios[-1], (1.0,) * rates)

    def smallest(self, keep: tuple[float, ...] = (1.0,)) -> Structure:
        """Returns the structure of the smallest width and MLP ratio."""
        return self.uniform(self.widths[0], self.ratios[0], keep)

    def first_group(self, choice: str) -> GroupChoice:
        """Returns the fixed choice of group 0.

        Args:
          choice: 'min', 'max', or 'WIDTHxRATIO', for example '48x2'.

        Raises:
          UserError: the space has no such choice; the message lists all.
        """
        named = {"min": (self.widths[0], self.ratios[0]), "max": (self.widths[-1], self.ratios[-1])}
        named |= {f"{width}x{ratio:g}": (width, ratio) for width in self.widths for ratio in self.ratios}
        if choice not in named:
            raise UserError(
                f"first group {choice!r} is not in the search space {self.name!r}; "
                f"choose from {', '.join(named)}"
            )
        return self.uniform(*named[choice]).groups[0]

    def sample_group(
        self, key: jax.Array, batch: int, group: int, keep_choices: tuple[tuple[float, ...], ...]
    ) -> GroupChoice:
        """Samples one group's choices uniformly, independently for each image and layer.

        Args:
          key: random key.
          batch: number of images.
          group: index of the group.
          keep_choices: keep rates to sample from, one tuple for each rate; unused for group 0.

        Returns:
          A choice whose entries have shape [batch]: int32 widths and MLP sizes, float32 keep rates.
        """
        num_layers = self.layers[group]
        widths_key, ratios_key, keep_key = jax.random.split(key, 3)
        widths = sample_choices(widths_key, self.widths, "int32", (num_layers, batch))
        ratios = sample_choices(ratios_key, self.ratios, "float32", (num_layers, batch))
        keep = ()
        if group:
            keys = jax.random.split(keep_key, len(keep_choices))
            keep = tuple(
                sample_choices(key, choices, "float32", (batch,)) for key, choices in zip(keys, keep_choices)
            )
        return GroupChoice(tuple(widths), tuple(self.mlp_dim(widths, ratios)), keep)

    def sample(self, key: jax.Array, batch: int, keep_choices: tuple[tuple[float, ...], ...]) -> Structure:
        """Samples a per-image structure, each group by `sample_group`, with the same arguments.

        Args:
          key: random key.
          batch: number of images.
          keep_choices: see there.
        """
        keys = jax.random.split(key, self.groups)
        return Structure(
            tuple(self.sample_group(keys[group], batch, group, keep_choices) for group in range(self.groups))
        )

    def check(self, structure: Structure, rates: int) -> Structure:
        """Checks that a structure lies in the space.

        Args:
          structure: static, or per image with concrete arrays.
          rates: number of keep rates of a decision point.

        Returns:
          The structure, unchanged.

        Raises:
          UserError: names the first entry outside the space.
        """
        if len(structure.groups) != self.groups:
            raise UserError(
                f"structure has {len(structure.groups)} groups, search space {self.name!r} has {self.groups}"
            )
        for index, (group, num_layers) in enumerate(zip(structure.groups, self.layers)):
            if len(group.widths) != num_layers or len(group.mlp_dims) != num_layers:
                raise UserError(
                    f"group {index} has {len(group.widths)} widths and {len(group.mlp_dims)} MLPs for "
                    f"{num_layers} layers"
                )
            if len(group.keep) != (rates if index else 0):
                raise UserError(
                    f"group {index} has {len(group.keep)} keep rates, needs {rates if index else 0}"
                )
            for layer, entries in enumerate(zip(group.widths, group.mlp_dims)):
                where = f"group {index}, layer {layer}"
                widths, mlp_dims = (np.atleast_1d(np.asarray(entry)) for entry in entries)
                for width in widths[~np.isin(widths, self.widths)][:1]:
                    raise UserError(
                        f"{where}: width {width} is not in the search space {self.name!r}; "
                        f"choose from {self.widths}"
                    )
                for mlp_dim, width in zip(*np.broadcast_arrays(mlp_dims, widths)):
                    allowed = tuple(self.mlp_dim(int(width), ratio) for ratio in self.ratios)
                    if mlp_dim not in allowed:
                        raise UserError(
                            f"{where}: {mlp_dim} hidden units at width {width}; choose from {allowed} "
                            f"(ratios {self.ratios})"
                        )
            for rate in group.keep:
                check_keep_rate(rate, f"group {index}")
        return structure


def check_keep_rate(rate: Rate, where: str) -> None:
    """Checks that keep rates lie in (0, 1].

    Args:
      rate: a keep rate or an array of them.
      where: start of the error message.

    Raises:
      UserError: names the first rate outside (0, 1].
    """
    rates = np.atleast_1d(np.asarray(rate, np.float64))
    invalid = rates[~((rates > 0) & (rates <= 1))]
    if invalid.size:
        raise UserError(
            f"{where}: keep rate {invalid[0]} is not a share of the tokens; set a number above 0 and up to 1"
        )


# The paper's spaces (12 layers, groups of 3), and `nano` for the bundled digits.
SPACES = {
    space.name: space
    for space in (
        SearchSpace("nano", 64, 3, 4, (32, 48, 64), (1, 2, 3), layers=(2, 2, 2, 2), head_dim=16),
        SearchSpace("tiny", 256, 6, 3, (176, 192, 216, 240), (2, 4, 6)),
        SearchSpace("small", 448, 5, 7, (320, 352, 368, 384, 400, 416), (2, 3.5, 5)),
        SearchSpace("base", 768, 5, 12, (672, 696, 720, 744, 768), (2, 3.5, 5)),
        # Plain networks: only tokens can be reduced (DeiT, arXiv 2012.12877).
        SearchSpace("deit_tiny", 192, 4, 3, (192,), (4,)),
        SearchSpace("deit_small", 384, 4, 6, (384,), (4,)),
        SearchSpace("deit_base", 768, 4, 12, (768,), (4,)),
    )
}
