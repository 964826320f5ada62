"""Plans: a few static sizes per group that any decision of a selector fits into.

A plan bounds one group: embedding widths and hidden units per layer, and the tokens left after each reduction. An image
runs in the cheapest plan that covers what was decided for it. Plans of a group are nested, each at least as large as
the one before in every size, so that the largest plan among several images covers them all. The last one covers every
decision that the selector can take.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from prance_jax.core.errors import UserError
from prance_jax.core.sizes import BoundedSize, Size
from prance_jax.spec.model_spec import ModelSpec
from prance_jax.spec.structure import GroupChoice
from prance_jax.tokens.token_set import keep_rate_for


class Bucket(NamedTuple):
    """Static bounds of one group. tokens: left after each reduction of the group, CLS counted."""

    widths: tuple[int, ...]
    mlp_dims: tuple[int, ...]
    tokens: tuple[int, ...]

    @property
    def sizes(self) -> tuple[int, ...]:
        return self.widths + self.mlp_dims + self.tokens

    def bound(self, choice: GroupChoice) -> GroupChoice:
        """The same choice per image, with this plan's bounds: what runs is no larger than the plan."""

        def within(sizes, bounds):
            return tuple(BoundedSize(jnp.asarray(size), bound) for size, bound in zip(sizes, bounds))

        return GroupChoice(
            within(choice.widths, self.widths),
            within(choice.mlp_dims, self.mlp_dims),
            within(choice.keep, self.tokens),
        )


@dataclass(frozen=True)
class Buckets:
    """first: the choice of group 0, which is the same for every image. groups: nested plans of groups 1, 2, ..."""

    spec: ModelSpec
    first_choice: GroupChoice
    groups: tuple[tuple[Bucket, ...], ...]

    def __post_init__(self):
        if len(self.groups) != self.spec.space.groups - 1 or not all(self.groups):
            raise UserError(f"plans: {self.spec.space.groups - 1} groups need one plan each, at least")
        for group, buckets in enumerate(self.groups, start=1):
            for small, large in zip(buckets, buckets[1:]):
                if any(a > b for a, b in zip(small.sizes, large.sizes)):
                    raise UserError(
                        f"plans of group {group} are not nested: {small} does not fit into {large}"
                    )

    def index(self, group: int, choice: GroupChoice, count: jax.Array) -> jax.Array:
        """int32 [B]: the first plan of `group` that covers a per-image choice. count: [B], tokens that arrive."""
        wanted = jnp.stack(
            [jnp.broadcast_to(size, count.shape) for size in bucket_sizes(self.spec, choice, count)], axis=1
        )
        bounds = jnp.asarray([bucket.sizes for bucket in self.groups[group - 1]])
        covers = jnp.all(wanted[:, None] <= bounds, axis=2)
        # Nothing is larger than the last plan.
        return jnp.where(covers.any(axis=1), jnp.argmax(covers, axis=1), len(bounds) - 1)

    def rounded(self, group: int, choice: GroupChoice, count: jax.Array) -> GroupChoice:
        """All that the plan of each image gives: its widths, hidden units and token counts, per image.

        Arguments as in `index`. An image that arrives with fewer tokens than its plan keeps all that it has.
        """
        table = jnp.asarray([bucket.sizes for bucket in self.groups[group - 1]])
        columns = tuple(table[self.index(group, choice, count)].T)
        layers = self.spec.space.layers[group]
        rates = []
        for bound in columns[2 * layers :]:
            rates.append(keep_rate_for(jnp.minimum(bound, count), count))
            (count,) = self.spec.tokens_after(count, rates[-1:])
        return GroupChoice(columns[:layers], columns[layers : 2 * layers], tuple(rates))


def bucket_sizes(spec: ModelSpec, choice: GroupChoice, count: Size) -> tuple[Size, ...]:
    """What a plan must cover: widths, hidden units, tokens after each reduction."""
    return (*choice.widths, *choice.mlp_dims, *spec.tokens_after(count, choice.keep))
