"""Buckets: a few static upper sizes per group of layers, such that every decision fits into one.

A bucket bounds the embedding widths and MLP sizes of each layer of a group, and the tokens after
each reduction. An image runs in the first bucket that covers its decision. The buckets of a group
are nested: each is at least as large as the one before in every size. So the largest bucket needed
among several images covers all of them. The last bucket covers every decision that the selector can
take.
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
    """Static upper sizes of one group.

    Attributes:
      widths: embedding width of each layer, in channels.
      mlp_dims: hidden units of each layer's MLP.
      tokens: tokens after each reduction of the group, CLS counted.
    """

    widths: tuple[int, ...]
    mlp_dims: tuple[int, ...]
    tokens: tuple[int, ...]

    @property
    def sizes(self) -> tuple[int, ...]:
        """All upper sizes: widths, MLP sizes, tokens."""
        return self.widths + self.mlp_dims + self.tokens

    def bound(self, choice: GroupChoice) -> GroupChoice:
        """Adds this bucket's bounds to a per-image choice, which limits the size of arrays."""

        def bounded(sizes, bounds):
            return tuple(BoundedSize(jnp.asarray(size), bound) for size, bound in zip(sizes, bounds))

        return GroupChoice(
            bounded(choice.widths, self.widths),
            bounded(choice.mlp_dims, self.mlp_dims),
            bounded(choice.keep, self.tokens),
        )


@dataclass(frozen=True)
class Buckets:
    """The buckets of every group of a network. Hashable, so they can be static under `jit`.

    Attributes:
      spec: the network.
      first_choice: choice of group 0, the same for every image.
      groups: nested buckets, smallest first, of groups 1, 2, ...
    """

    spec: ModelSpec
    first_choice: GroupChoice
    groups: tuple[tuple[Bucket, ...], ...]

    def __post_init__(self):
        if len(self.groups) != self.spec.space.groups - 1 or not all(self.groups):
            raise UserError(
                f"buckets: {self.spec.space.groups - 1} groups need at least one bucket each, found "
                f"{[len(buckets) for buckets in self.groups]}"
            )
        for group, buckets in enumerate(self.groups, start=1):
            for small, large in zip(buckets, buckets[1:]):
                if any(a > b for a, b in zip(small.sizes, large.sizes)):
                    raise UserError(
                        f"buckets of group {group} are not nested: {small} does not fit into {large}"
                    )

    def index(self, group: int, choice: GroupChoice, count: jax.Array) -> jax.Array:
        """Finds the first bucket that covers each image's choice.

        Args:
          group: group of layers, from 1.
          choice: per-image choice for the group.
          count: int32 [B], tokens that arrive at the group.

        Returns:
          Index of the bucket, int32 [B].
        """
        sizes = jnp.stack(
            [jnp.broadcast_to(size, count.shape) for size in bucket_sizes(self.spec, choice, count)], axis=1
        )
        bounds = jnp.asarray([bucket.sizes for bucket in self.groups[group - 1]], jnp.int32)
        covers = jnp.all(sizes[:, None] <= bounds, axis=2)
        # Nothing is larger than the last bucket.
        return jnp.where(covers.any(axis=1), jnp.argmax(covers, axis=1).astype(jnp.int32), len(bounds) - 1)

    def rounded(self, group: int, choice: GroupChoice, count: jax.Array) -> GroupChoice:
        """Rounds each image's choice up to the whole of its bucket.

        Args:
          group: group of layers, from 1.
          choice: per-image choice for the group.
          count: int32 [B], tokens that arrive at the group.

        Returns:
          Widths, MLP sizes and keep rates of the bucket, [B] each. An image that arrives with fewer
          tokens than its bucket holds keeps all of them.
        """
        table = jnp.asarray([bucket.sizes for bucket in self.groups[group - 1]], jnp.int32)
        columns = tuple(table[self.index(group, choice, count)].T)
        layers = self.spec.space.layers[group]
        rates = []
        for bound in columns[2 * layers :]:
            rates.append(keep_rate_for(jnp.minimum(bound, count), count))
            (count,) = self.spec.tokens_after(count, rates[-1:])
        return GroupChoice(columns[:layers], columns[layers : 2 * layers], tuple(rates))


def bucket_sizes(spec: ModelSpec, choice: GroupChoice, count: Size) -> tuple[Size, ...]:
    """Returns the sizes that a bucket must cover, in the order of `Bucket.sizes`.

    Args:
      spec: the network.
      choice: choice for one group.
      count: tokens that arrive at the group.

    Returns:
      Widths, MLP sizes, tokens after each reduction.
    """
    return (*choice.widths, *choice.mlp_dims, *spec.tokens_after(count, choice.keep))
