"""Chooses buckets so that rounding decisions up to them costs least."""

from __future__ import annotations

import jax
import numpy as np

from prance_jax.adaptive.buckets import Bucket, Buckets, bucket_sizes
from prance_jax.spec.model_spec import ModelSpec
from prance_jax.spec.structure import GroupChoice, Structure


def even_buckets(spec: ModelSpec, first_choice: GroupChoice, number: int, smallest_keep: float) -> Buckets:
    """Plans without a selector: `number` of them a group, from the smallest choice to the largest in even steps.

    smallest_keep: share of the original tokens that the smallest plan of the last group keeps. For measurements on
    random weights.
    """
    space = spec.space
    groups = []
    for group in range(1, space.groups):
        buckets = []
        for step in np.linspace(0, 1, number):
            width = space.widths[round(step * (len(space.widths) - 1))]
            ratio = space.ratios[round(step * (len(space.ratios) - 1))]
            keep = (smallest_keep + step * (1 - smallest_keep)) ** (group / (space.groups - 1))
            tokens = max(spec.fewest_tokens, int(keep * spec.tokens))
            layers = space.layers[group]
            buckets.append(
                Bucket((width,) * layers, (space.mlp_dim(width, ratio),) * layers, (tokens,) * spec.rates)
            )
        groups.append(tuple(dict.fromkeys(buckets)))
    return Buckets(spec, first_choice, tuple(groups))


def choose_buckets(
    spec: ModelSpec, structure: Structure, number: int, multiple: int = 8, widest: Structure | None = None
) -> Buckets:
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
        wanted = np.stack(
            [np.broadcast_to(size, count.shape) for size in bucket_sizes(spec, choice, count)], axis=1
        )
        count = wanted[:, -1]
        top = np.array(bucket_sizes(spec, widest.groups[group], spec.tokens))
        wanted, top = (_rounded(rows, 2 * layers, multiple, spec.tokens) for rows in (wanted, top))
        # Images that decided alike are one row: there are far fewer decisions than images.
        wanted, images = np.unique(wanted, axis=0, return_counts=True)
        order = np.argsort(_cost(spec, wanted, layers, arriving), kind="stable")
        envelopes = np.maximum.accumulate(wanted[order], axis=0)
        cuts = cheapest_cuts(_cost(spec, envelopes, layers, arriving), images[order], number)
        rows = [*envelopes[cuts], np.maximum(envelopes[-1], top)]
        buckets = [
            Bucket(*(tuple(map(int, part)) for part in np.split(row, [layers, 2 * layers]))) for row in rows
        ]
        groups.append(tuple(dict.fromkeys(buckets)))
    return Buckets(spec, structure.groups[0], tuple(groups))


def _rounded(rows: np.ndarray, first_column: int, multiple: int, most: int) -> np.ndarray:
    """Sizes with the token counts (from column `first`) rounded up."""
    tokens = np.minimum(-(-rows[..., first_column:] // multiple) * multiple, most)
    return np.concatenate([rows[..., :first_column], tokens], axis=-1)


def _cost(spec: ModelSpec, rows: np.ndarray, layers: int, arriving: float) -> np.ndarray:
    """Multiply-accumulates of a group by its sizes [N, columns]; guides the choice, nothing is reported from it."""
    inner, tokens_after = spec.space.attention_width, rows[:, -1]
    total = np.zeros(len(rows))
    for layer in range(layers):
        width, mlp_dims = rows[:, layer].astype(float), rows[:, layers + layer]
        seen = arriving if layer == 0 else tokens_after
        total += 4 * seen * width * inner + 2 * seen**2 * inner + 2 * tokens_after * width * mlp_dims
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
