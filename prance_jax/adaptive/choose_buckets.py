"""Chooses buckets so that rounding decisions up to them costs least."""

from __future__ import annotations

import jax
import numpy as np

from prance_jax.adaptive.buckets import Bucket, Buckets, bucket_sizes
from prance_jax.spec.model_spec import ModelSpec
from prance_jax.spec.structure import GroupChoice, Structure


def even_buckets(
    spec: ModelSpec, first_choice: GroupChoice, num_buckets: int = 4, smallest_keep: float = 0.2
) -> Buckets:
    """Builds buckets without a selector, in even steps from the smallest choice to the largest.

    For measurements on random weights.

    Args:
      spec: the network.
      first_choice: choice of group 0.
      num_buckets: buckets per group, at most.
      smallest_keep: share of the original tokens that the smallest bucket of the last group holds.

    Returns:
      The buckets.
    """
    space = spec.space
    groups = []
    for group in range(1, space.groups):
        buckets = []
        for step in np.linspace(0, 1, num_buckets):
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
    spec: ModelSpec,
    structure: Structure,
    num_buckets: int,
    multiple: int = 8,
) -> Buckets:
    """Chooses the buckets that cost the fewest MACs on calibration images, by dynamic programming.

    Images are sorted by the cost of their decision and cut into runs. The bucket of a run is the
    envelope of all decisions up to its end. The cuts minimise the sum over images of their bucket's
    cost.

    Args:
      spec: the network.
      structure: decisions of a selector, entries [N]; group 0 is static.
      num_buckets: buckets per group, at most, beside the one that covers everything.
      multiple: token counts are rounded up to a multiple of it (which suits the hardware), never
        above the original.

    Returns:
      The buckets.
    """
    choices = jax.tree.map(np.asarray, structure.groups[1:])
    count = np.full(np.shape(choices[0].widths[0]), spec.tokens, np.int32)
    groups = []
    for group, choice in enumerate(choices, start=1):
        layers, arriving = spec.space.layers[group], float(count.mean())
        sizes = np.stack(
            [np.broadcast_to(size, count.shape) for size in bucket_sizes(spec, choice, count)], axis=1
        )
        count = sizes[:, -1]
        covering = np.array(bucket_sizes(spec, spec.largest.groups[group], spec.tokens))
        sizes, covering = (
            _round_tokens_up(rows, 2 * layers, multiple, spec.tokens) for rows in (sizes, covering)
        )
        # Images with equal decisions are one row: there are far fewer decisions than images.
        sizes, images = np.unique(sizes, axis=0, return_counts=True)
        order = np.argsort(_cost(spec, sizes, layers, arriving), kind="stable")
        envelopes = np.maximum.accumulate(sizes[order], axis=0)
        cuts = cheapest_cuts(_cost(spec, envelopes, layers, arriving), images[order], num_buckets)
        rows = [*envelopes[cuts], np.maximum(envelopes[-1], covering)]
        buckets = [
            Bucket(*(tuple(map(int, part)) for part in np.split(row, [layers, 2 * layers]))) for row in rows
        ]
        groups.append(tuple(dict.fromkeys(buckets)))
    return Buckets(spec, structure.groups[0], tuple(groups))


def _round_tokens_up(rows: np.ndarray, first_column: int, multiple: int, most: int) -> np.ndarray:
    """Sizes whose token counts, from column `first_column`, are rounded up to a multiple."""
    tokens = np.minimum(-(-rows[..., first_column:] // multiple) * multiple, most)
    return np.concatenate([rows[..., :first_column], tokens], axis=-1)


def _cost(spec: ModelSpec, rows: np.ndarray, layers: int, arriving: float) -> np.ndarray:
    """Approximate MACs of a group by its sizes [N, columns]; only guides the choice."""
    inner, tokens_after = spec.space.attention_width, rows[:, -1]
    total = np.zeros(len(rows))
    for layer in range(layers):
        width, mlp_dim = rows[:, layer].astype(float), rows[:, layers + layer]
        tokens = arriving if layer == 0 else tokens_after
        total += 4 * tokens * width * inner + 2 * tokens**2 * inner + 2 * tokens_after * width * mlp_dim
    return total


def cheapest_cuts(costs: np.ndarray, images: np.ndarray, num_buckets: int) -> list[int]:
    """Cuts rows in order into runs so that the total cost is smallest, by dynamic programming.

    Ends i_1 < ... < i_k = N - 1, k <= num_buckets, minimise the sum of costs[i_j] x (images in rows
    i_{j-1} + 1 to i_j).

    Args:
      costs: [N], cost per image of a bucket that ends at each row.
      images: int [N], images in each row.
      num_buckets: runs, at most.

    Returns:
      The last row of each run.
    """
    total, cumulative = len(costs), np.cumsum(images)
    best = costs * cumulative  # one bucket for the images up to each row
    previous_ends = [np.full(total, -1)]
    for _ in range(num_buckets - 1):
        # table[e, p]: the images after row p up to row e have a bucket of their own.
        lengths = cumulative[:, None] - cumulative
        table = np.where(lengths > 0, best[None] + costs[:, None] * lengths, np.inf)
        table = np.concatenate([table, best[:, None]], axis=1)  # or no further bucket
        chosen = table.argmin(axis=1)
        previous_ends.append(np.where(chosen == total, -2, chosen))
        best = table.min(axis=1)
    cuts, end = [], total - 1
    for previous in reversed(previous_ends):
        if previous[end] == -2:
            continue
        cuts.append(end)
        end = previous[end]
    return cuts[::-1]
