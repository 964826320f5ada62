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
import numpy as np

from prance_jax.core.errors import UserError
from prance_jax.spec.model_spec import ModelSpec
from prance_jax.spec.search_space import GroupChoice, Size, Structure, Within
from prance_jax.tokens.token_set import rate_for


class Plan(NamedTuple):
    """Static bounds of one group. tokens: left after each reduction of the group, CLS counted."""

    widths: tuple[int, ...]
    hidden: tuple[int, ...]
    tokens: tuple[int, ...]

    @property
    def sizes(self) -> tuple[int, ...]:
        return self.widths + self.hidden + self.tokens

    def bound(self, choice: GroupChoice) -> GroupChoice:
        """The same choice per image, with this plan's bounds: what runs is no larger than the plan."""

        def within(sizes, bounds):
            return tuple(Within(jnp.asarray(size), bound) for size, bound in zip(sizes, bounds))

        return GroupChoice(
            within(choice.widths, self.widths),
            within(choice.hidden, self.hidden),
            within(choice.keep, self.tokens),
        )


@dataclass(frozen=True)
class Plans:
    """first: the choice of group 0, which is the same for every image. groups: nested plans of groups 1, 2, ..."""

    spec: ModelSpec
    first: GroupChoice
    groups: tuple[tuple[Plan, ...], ...]

    def __post_init__(self):
        if len(self.groups) != self.spec.space.groups - 1 or not all(self.groups):
            raise UserError(f"plans: {self.spec.space.groups - 1} groups need one plan each, at least")
        for group, plans in enumerate(self.groups, start=1):
            for small, large in zip(plans, plans[1:]):
                if any(a > b for a, b in zip(small.sizes, large.sizes)):
                    raise UserError(
                        f"plans of group {group} are not nested: {small} does not fit into {large}"
                    )

    def index(self, group: int, choice: GroupChoice, count: jax.Array) -> jax.Array:
        """int32 [B]: the first plan of `group` that covers a per-image choice. count: [B], tokens that arrive."""
        wanted = jnp.stack(
            [jnp.broadcast_to(size, count.shape) for size in sizes(self.spec, choice, count)], axis=1
        )
        bounds = jnp.asarray([plan.sizes for plan in self.groups[group - 1]])
        covers = jnp.all(wanted[:, None] <= bounds, axis=2)
        # Nothing is larger than the last plan.
        return jnp.where(covers.any(axis=1), jnp.argmax(covers, axis=1), len(bounds) - 1)

    def rounded(self, group: int, choice: GroupChoice, count: jax.Array) -> GroupChoice:
        """All that the plan of each image gives: its widths, hidden units and token counts, per image.

        Arguments as in `index`. An image that arrives with fewer tokens than its plan keeps all that it has.
        """
        table = jnp.asarray([plan.sizes for plan in self.groups[group - 1]])
        columns = tuple(table[self.index(group, choice, count)].T)
        layers = self.spec.space.layers[group]
        rates = []
        for bound in columns[2 * layers :]:
            rates.append(rate_for(jnp.minimum(bound, count), count))
            (count,) = self.spec.left(count, rates[-1:])
        return GroupChoice(columns[:layers], columns[layers : 2 * layers], tuple(rates))


def sizes(spec: ModelSpec, choice: GroupChoice, count: Size) -> tuple[Size, ...]:
    """What a plan must cover: widths, hidden units, tokens after each reduction."""
    return (*choice.widths, *choice.hidden, *spec.left(count, choice.keep))


def even_plans(spec: ModelSpec, first: GroupChoice, number: int, smallest_keep: float) -> Plans:
    """Plans without a selector: `number` of them a group, from the smallest choice to the largest in even steps.

    smallest_keep: share of the original tokens that the smallest plan of the last group keeps. For measurements on
    random weights.
    """
    space = spec.space
    groups = []
    for group in range(1, space.groups):
        plans = []
        for step in np.linspace(0, 1, number):
            width = space.widths[round(step * (len(space.widths) - 1))]
            ratio = space.ratios[round(step * (len(space.ratios) - 1))]
            keep = (smallest_keep + step * (1 - smallest_keep)) ** (group / (space.groups - 1))
            tokens = max(spec.fewest_tokens, int(keep * spec.tokens))
            layers = space.layers[group]
            plans.append(
                Plan((width,) * layers, (space.hidden_units(width, ratio),) * layers, (tokens,) * spec.rates)
            )
        groups.append(tuple(dict.fromkeys(plans)))
    return Plans(spec, first, tuple(groups))


def choose_plans(
    spec: ModelSpec, structure: Structure, number: int, multiple: int = 8, widest: Structure | None = None
) -> Plans:
    """The plans that cost the fewest multiply-accumulates on calibration images, by dynamic programming.

    Images are put in order of what their decision costs; a plan is the envelope of all decisions up to a cut, and the
    cuts are placed so that the sum over images of what their plan costs is smallest.

    structure: per-image decisions of a selector, entries [N]; group 0 static.
    number: plans a group, at most, beside the one that covers everything. multiple: token counts are rounded up to it
    (what hardware likes), never above the original tokens. widest: a static structure that covers every possible
    decision; the largest of the space by default.
    """
    widest = widest or spec.largest
    choices = jax.tree.map(np.asarray, structure.groups[1:])
    count = np.full(np.shape(choices[0].widths[0]), spec.tokens, np.int32)
    groups = []
    for group, choice in enumerate(choices, start=1):
        layers, arriving = spec.space.layers[group], float(count.mean())
        wanted = np.stack([np.broadcast_to(size, count.shape) for size in sizes(spec, choice, count)], axis=1)
        count = wanted[:, -1]
        top = np.array(sizes(spec, widest.groups[group], spec.tokens))
        wanted, top = (_rounded(rows, 2 * layers, multiple, spec.tokens) for rows in (wanted, top))
        # Images that decided alike are one row: there are far fewer decisions than images.
        wanted, images = np.unique(wanted, axis=0, return_counts=True)
        order = np.argsort(_cost(spec, wanted, layers, arriving), kind="stable")
        envelopes = np.maximum.accumulate(wanted[order], axis=0)
        cuts = cheapest_cuts(_cost(spec, envelopes, layers, arriving), images[order], number)
        rows = [*envelopes[cuts], np.maximum(envelopes[-1], top)]
        plans = [
            Plan(*(tuple(map(int, part)) for part in np.split(row, [layers, 2 * layers]))) for row in rows
        ]
        groups.append(tuple(dict.fromkeys(plans)))
    return Plans(spec, structure.groups[0], tuple(groups))


def _rounded(rows: np.ndarray, first: int, multiple: int, most: int) -> np.ndarray:
    """Sizes with the token counts (from column `first`) rounded up."""
    tokens = np.minimum(-(-rows[..., first:] // multiple) * multiple, most)
    return np.concatenate([rows[..., :first], tokens], axis=-1)


def _cost(spec: ModelSpec, rows: np.ndarray, layers: int, arriving: float) -> np.ndarray:
    """Multiply-accumulates of a group by its sizes [N, columns]; guides the choice, nothing is reported from it."""
    inner, left = spec.space.attention_width, rows[:, -1]
    total = np.zeros(len(rows))
    for layer in range(layers):
        width, hidden = rows[:, layer].astype(float), rows[:, layers + layer]
        seen = arriving if layer == 0 else left
        total += 4 * seen * width * inner + 2 * seen**2 * inner + 2 * left * width * hidden
    return total


def cheapest_cuts(costs: np.ndarray, images: np.ndarray, number: int) -> list[int]:
    """Ends i_1 < ... < i_k = N - 1, k <= number, for which the sum of costs[i_j] x (images from i_{j-1} to i_j) is
    smallest. costs, images: [N], of the rows in order."""
    total, upto = len(costs), np.cumsum(images)
    best = costs * upto  # with one plan, for the images up to each
    before = [np.full(total, -1)]
    for _ in range(number - 1):
        # table[e, p]: images after p up to e in a plan of their own.
        lengths = upto[:, None] - upto
        table = np.where(lengths > 0, best[None] + costs[:, None] * lengths, np.inf)
        table = np.concatenate([table, best[:, None]], axis=1)  # or no further plan
        chosen = table.argmin(axis=1)
        before.append(np.where(chosen == total, -2, chosen))
        best = table.min(axis=1)
    cuts, end = [], total - 1
    for previous in reversed(before):
        if previous[end] == -2:
            continue
        cuts.append(end)
        end = previous[end]
    return cuts[::-1]
