"""Search spaces: the structures that one set of weights holds (PRANCE, section 3, table 1)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from prance_jax.core.errors import UserError
from prance_jax.core.sizes import Rate, Size
from prance_jax.spec.structure import GroupChoice, Structure


@dataclass(frozen=True)
class SearchSpace:
    """The sub-structures that one set of weights holds.

    super_width, super_ratio: embedding width and MLP ratio that the weights are stored at.
    heads, head_dim: fixed; q, k and v are always heads x head_dim wide.
    widths, ratios: allowed embedding widths and MLP ratios per layer, ascending.
    layers: number of layers of each group; a decision point opens every group but the first.

    Raises UserError when a choice does not fit into the stored weights.
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
        for field, choices, top in (
            ("widths", self.widths, self.super_width),
            ("ratios", self.ratios, self.super_ratio),
        ):
            if not choices or list(choices) != sorted(set(choices)) or choices[0] <= 0:
                raise UserError(
                    f"search space {self.name!r}: {field}={choices} must be positive, ascending, without repeats"
                )
            if choices[-1] > top:
                raise UserError(
                    f"search space {self.name!r}: {field} go up to {choices[-1]}, but the weights stop at {top}"
                )
        if not self.layers or min(self.layers) < 1 or min(self.layers[1:-1], default=2) < 2:
            raise UserError(
                f"search space {self.name!r}: layers={self.layers} needs a layer in the first and last group and two in the "
                "others (the next decision reads the attention of a layer that sees only the tokens that are left)"
            )

    @property
    def depth(self) -> int:
        return sum(self.layers)

    @property
    def groups(self) -> int:
        return len(self.layers)

    @property
    def first_layers(self) -> tuple[int, ...]:
        """Index of the layer that opens each group: 0 and the decision points."""
        return tuple(sum(self.layers[:group]) for group in range(self.groups))

    @property
    def max_width(self) -> int:
        """The largest width that can be chosen; it can be narrower than the stored width."""
        return self.widths[-1]

    @property
    def max_mlp_dim(self) -> int:
        return self.mlp_dim(self.widths[-1], self.ratios[-1])

    @property
    def attention_width(self) -> int:
        return self.heads * self.head_dim

    @property
    def structures(self) -> int:
        """Number of channel structures (token counts aside); 15**12 for `base`."""
        return (len(self.widths) * len(self.ratios)) ** self.depth

    @staticmethod
    def mlp_dim(width: Size, ratio: Rate) -> Size:
        """floor(width x ratio)."""
        if isinstance(width, int) and isinstance(ratio, (int, float)):
            return math.floor(width * ratio)
        return jnp.floor(jnp.asarray(width) * jnp.asarray(ratio, jnp.float32)).astype(jnp.int32)

    @staticmethod
    def ratio(width: int, mlp_dims: int) -> float:
        """A ratio r with floor(width x r) = hidden; the quotient itself may be rounded to just below."""
        quotient = mlp_dims / width
        return quotient if math.floor(width * quotient) == mlp_dims else math.nextafter(quotient, math.inf)

    def uniform(self, width: int, ratio: float, keep: tuple[float, ...] = (1.0,)) -> Structure:
        """The static structure with one width, one ratio and one set of keep rates everywhere."""
        mlp_dims = self.mlp_dim(width, ratio)
        return Structure(
            tuple(
                GroupChoice((width,) * count, (mlp_dims,) * count, tuple(keep) if group else ())
                for group, count in enumerate(self.layers)
            )
        )

    def largest(self, rates: int = 1) -> Structure:
        """The widest choice everywhere, all tokens. `rates`: keep rates per decision point (2 for prune_merge)."""
        return self.uniform(self.widths[-1], self.ratios[-1], (1.0,) * rates)

    def smallest(self, keep: tuple[float, ...] = (1.0,)) -> Structure:
        return self.uniform(self.widths[0], self.ratios[0], keep)

    def first_group(self, choice: str) -> GroupChoice:
        """The fixed structure of the first group: 'min', 'max', or 'WIDTHxRATIO' from the space, say '48x2'."""
        named = {"min": (self.widths[0], self.ratios[0]), "max": (self.widths[-1], self.ratios[-1])}
        named |= {f"{width}x{ratio:g}": (width, ratio) for width in self.widths for ratio in self.ratios}
        if choice not in named:
            raise UserError(
                f"first group {choice!r} is not in the search space {self.name!r}; choose from {', '.join(named)}"
            )
        return self.uniform(*named[choice]).groups[0]

    def sample_group(
        self, key: jax.Array, batch: int, group: int, keep_choices: tuple[tuple[float, ...], ...]
    ) -> GroupChoice:
        """Draws a choice per image and per layer, uniformly: exactly what a selector over the same lattice can choose.

        keep_choices: allowed keep rates, one tuple per rate; ignored for the first group.
        Returns entries of shape [batch].
        """
        count = self.layers[group]
        widths_key, ratios_key, keep_key = jax.random.split(key, 3)
        widths = jax.random.choice(widths_key, jnp.asarray(self.widths, jnp.int32), (count, batch))
        ratios = jax.random.choice(ratios_key, jnp.asarray(self.ratios, jnp.float32), (count, batch))
        keep = ()
        if group:
            keys = jax.random.split(keep_key, len(keep_choices))
            keep = tuple(
                jax.random.choice(key, jnp.asarray(choices, jnp.float32), (batch,))
                for key, choices in zip(keys, keep_choices)
            )
        return GroupChoice(tuple(widths), tuple(self.mlp_dim(widths, ratios)), keep)

    def sample(self, key: jax.Array, batch: int, keep_choices: tuple[tuple[float, ...], ...]) -> Structure:
        """A per-image structure, every group drawn by `sample_group`."""
        keys = jax.random.split(key, self.groups)
        return Structure(
            tuple(self.sample_group(keys[group], batch, group, keep_choices) for group in range(self.groups))
        )

    def check(self, structure: Structure, rates: int) -> Structure:
        """Returns the structure if it lies in the space; raises UserError naming the first entry that does not.

        Static entries and concrete arrays are checked. `rates` is the number of keep rates per decision point.
        """
        if len(structure.groups) != self.groups:
            raise UserError(
                f"structure has {len(structure.groups)} groups, search space {self.name!r} has {self.groups}"
            )
        for index, (group, count) in enumerate(zip(structure.groups, self.layers)):
            if len(group.widths) != count or len(group.mlp_dims) != count:
                raise UserError(
                    f"group {index} has {len(group.widths)} widths and {len(group.mlp_dims)} MLPs for {count} layers"
                )
            if len(group.keep) != (rates if index else 0):
                raise UserError(
                    f"group {index} has {len(group.keep)} keep rates, needs {rates if index else 0}"
                )
            for layer, (width, mlp_dims) in enumerate(zip(group.widths, group.mlp_dims)):
                where = f"group {index}, layer {layer}"
                widths, units = np.atleast_1d(np.asarray(width)), np.atleast_1d(np.asarray(mlp_dims))
                for one in widths[~np.isin(widths, self.widths)][:1]:
                    raise UserError(
                        f"{where}: width {one} is not in the search space {self.name!r}; choose from {self.widths}"
                    )
                for one, own in zip(*np.broadcast_arrays(units, widths)):
                    allowed = tuple(self.mlp_dim(int(own), ratio) for ratio in self.ratios)
                    if one not in allowed:
                        raise UserError(
                            f"{where}: {one} hidden units at width {own}; choose from {allowed} (ratios {self.ratios})"
                        )
            for rate in group.keep:
                check_keep_rate(rate, f"group {index}")
        return structure


def check_keep_rate(rate: Rate, where: str) -> None:
    """Raises UserError unless every keep rate lies in (0, 1]."""
    values = np.atleast_1d(np.asarray(rate, np.float64))
    bad = values[~((values > 0) & (values <= 1))]
    if bad.size:
        raise UserError(
            f"{where}: keep rate {bad[0]} is not a share of the tokens; say a number above 0 and up to 1"
        )


# The paper's spaces (12 layers, groups of 3), and `nano` for the embedded digits.
SPACES = {
    space.name: space
    for space in (
        SearchSpace("nano", 64, 3, 4, (32, 48, 64), (1, 2, 3), layers=(2, 2, 2, 2), head_dim=16),
        SearchSpace("tiny", 256, 6, 3, (176, 192, 216, 240), (2, 4, 6)),
        SearchSpace("small", 448, 5, 7, (320, 352, 368, 384, 400, 416), (2, 3.5, 5)),
        SearchSpace("base", 768, 5, 12, (672, 696, 720, 744, 768), (2, 3.5, 5)),
        # Nothing to choose but tokens: the plain networks (Touvron et al. 2021, arXiv 2012.12877).
        SearchSpace("deit_tiny", 192, 4, 3, (192,), (4,)),
        SearchSpace("deit_small", 384, 4, 6, (384,), (4,)),
        SearchSpace("deit_base", 768, 4, 12, (768,), (4,)),
    )
}
