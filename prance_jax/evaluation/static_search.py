"""Finds the best static structure for a budget: the baseline that an adaptive method has to beat.

An evolutionary search on validation images. It covers all discrete choices of the selector, and the
first group's structure, which the selector does not choose. Candidates are sampled, mutated and
costed in bulk. Losses of all candidates come from one masked program.
"""

from __future__ import annotations

import functools
from typing import Any, Callable

import jax
import jax.numpy as jnp
import numpy as np

from prance_jax.core.losses import cross_entropy
from prance_jax.data.source import Split
from prance_jax.evaluation.static_candidates import CandidateSpace
from prance_jax.models.forward import fixed_decisions, forward_adaptive
from prance_jax.models.vit import ViT
from prance_jax.selector.actions import ActionSpace
from prance_jax.spec.macs import macs
from prance_jax.spec.model_spec import ModelSpec
from prance_jax.spec.structure import Structure

# Random candidates that are costed.
_POOL = 65536
# Mutations that are costed for one generation, and candidates near a budget that are mutated.
_MUTATIONS, _NEAREST = 8192, 256
# Generations of mutations towards a budget that no random candidate fits.
_APPROACHES = 20
# Pairs of candidate and image in one call of the compiled program.
_BATCH = 128
# Fewest images for the losses of all candidates.
_FIRST_IMAGES = 128
# Smallest cost of a candidate, as a share of the budget.
_LEAST_SHARE = 0.9


def search_static_structures(
    spec: ModelSpec,
    actions: ActionSpace,
    params: Any,
    split: Split,
    budgets: tuple[float, ...],
    *,
    candidates: int,
    images: int,
    seed: int,
    parents: int = 16,
) -> list[tuple[Structure, float]]:
    """Finds a static structure with a low validation loss for each budget.

    All candidates run on the first quarter of the images, but at least on 128. The best quarter of
    them then runs on all images. The result of a budget does not depend on the other budgets.

    Args:
      spec: sizes of the network.
      actions: choices of the selector; must be discrete.
      params: parameters of the network.
      split: validation images and labels.
      budgets: largest costs in MACs. Candidates cost at least 90 % of their budget.
      candidates: number of structures that are evaluated for each budget. The first third is
        random, all others are mutations of the best so far.
      images: number of images, from the start of `split`.
      seed: of the search.
      parents: number of best structures that are mutated. A generation has half as many mutations.

    Returns:
      For each budget the structure and its loss on all images. Where no candidate fits, the
      smallest structure.
    """
    space = CandidateSpace(spec, actions)
    num_images = min(images, len(split.labels))
    num_first = min(num_images, max(num_images // 4, _FIRST_IMAGES))
    sum_losses = _loss_function(space, params, split, num_images, candidates)
    pool = space.sample(np.random.default_rng(seed), _POOL)
    pool = np.concatenate([[space.smallest, space.largest], pool])
    costs = space.costs(pool)
    searches = [_BudgetSearch(space, max_macs, seed, parents) for max_macs in budgets]
    proposals = [search.first_generation(pool, costs, max(1, candidates // 3)) for search in searches]
    while any(map(len, proposals)):
        for search, losses in zip(searches, _for_each(sum_losses, proposals, 0, num_first)):
            search.losses = np.concatenate([search.losses, losses])
        for search, genes in zip(searches, proposals):
            search.genes = np.concatenate([search.genes, genes])
        proposals = [search.next_generation(candidates - len(search.genes)) for search in searches]
    results = []
    finalists = [search.best(max(1, len(search.genes) // 4)) for search in searches]
    last_losses = _for_each(sum_losses, [genes for genes, _ in finalists], num_first, num_images)
    for (genes, first), last in zip(finalists, last_losses):
        losses = (first + last) / num_images
        results.append((space.structure(genes[losses.argmin()]), float(losses.min())))
    return results


def search_static_structure(
    spec: ModelSpec,
    actions: ActionSpace,
    params: Any,
    split: Split,
    max_macs: float,
    *,
    candidates: int,
    images: int,
    seed: int,
    parents: int = 16,
) -> tuple[Structure, float]:
    """Finds a static structure with a low validation loss that costs at most `max_macs`.

    Args:
      spec: sizes of the network.
      actions: choices of the selector; must be discrete.
      params: parameters of the network.
      split: validation images and labels.
      max_macs: largest cost in MACs. Candidates cost at least 90 % of it.
      candidates: number of structures that are evaluated.
      images: number of images, from the start of `split`.
      seed: of the search.
      parents: as for `search_static_structures`.

    Returns:
      The structure and its loss. Where no candidate fits, the smallest structure.
    """
    (result,) = search_static_structures(
        spec,
        actions,
        params,
        split,
        (max_macs,),
        candidates=candidates,
        images=images,
        seed=seed,
        parents=parents,
    )
    return result


class _BudgetSearch:
    """The evaluated candidates of one budget.

    Attributes:
      genes: int [N, G].
      losses: float64 [N], sums over the first images.
    """

    def __init__(self, space: CandidateSpace, max_macs: float, seed: int, parents: int):
        self.space, self.max_macs, self.parents = space, max_macs, parents
        # The same random numbers for every budget: its result does not depend on the others.
        self.rng = np.random.default_rng((seed, 1))
        self.genes, self.losses = np.zeros((0, len(space.sizes)), int), np.zeros(0)
        self.is_feasible = True

    def first_generation(self, pool: np.ndarray, costs: np.ndarray, count: int) -> np.ndarray:
        """Takes up to `count` candidates of the pool; where none fits, mutations towards the budget."""
        for _ in range(_APPROACHES):
            genes = self._take_fitting(pool, costs, count)
            if len(genes):
                return genes
            distance = np.maximum(costs - self.max_macs, _LEAST_SHARE * self.max_macs - costs)
            nearest = pool[np.argsort(distance, kind="stable")[:_NEAREST]]
            pool = np.concatenate([nearest, self.space.mutate(self.rng, nearest, _MUTATIONS)])
            costs = self.space.costs(pool)
        self.is_feasible = False
        return self.space.smallest[None]

    def next_generation(self, count: int) -> np.ndarray:
        """Returns mutations of the best candidates, at most `count`; fewer where few are new and fit."""
        if not self.is_feasible or count <= 0:
            return self.genes[:0]
        best, _ = self.best(self.parents)
        genes = self.space.mutate(self.rng, best, _MUTATIONS)
        return self._take_fitting(genes, self.space.costs(genes), min(count, max(1, self.parents // 2)))

    def best(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the candidates of lowest loss, best first, and their losses."""
        order = np.argsort(self.losses, kind="stable")[:count]
        return self.genes[order], self.losses[order]

    def _take_fitting(self, genes: np.ndarray, costs: np.ndarray, count: int) -> np.ndarray:
        """Returns the first `count` genes that fit the budget and are new."""
        low, high = _LEAST_SHARE * self.max_macs, self.max_macs
        # Costs are rounded to float32. Candidates at the ends of the range are checked exactly.
        is_near = (costs >= low * (1 - 1e-5)) & (costs <= high * (1 + 1e-5))
        rows = np.concatenate([self.genes, genes[is_near]])
        _, first_rows = np.unique(rows, axis=0, return_index=True)
        taken = []
        for row in np.sort(first_rows[first_rows >= len(self.genes)]):
            if len(taken) == count:
                break
            if low <= macs(self.space.spec, self.space.structure(rows[row])).total <= high:
                taken.append(row)
        return rows[np.array(taken, int)]


def _for_each(sum_losses: Callable, genes: list[np.ndarray], start: int, stop: int) -> list[np.ndarray]:
    """Computes the losses of several lists of candidates together."""
    losses = sum_losses(np.concatenate(genes), start, stop)
    return np.split(losses, np.cumsum([len(some) for some in genes])[:-1])


def _loss_function(
    space: CandidateSpace, params: Any, split: Split, num_images: int, candidates: int
) -> Callable[[np.ndarray, int, int], np.ndarray]:
    """Returns (genes int [N, G], start, stop) -> sum of the losses of images start .. stop - 1, float64 [N]."""
    images, labels = jnp.asarray(split.images[:num_images]), jnp.asarray(split.labels[:num_images])
    batch = min(_BATCH, candidates * num_images)

    def sum_losses(genes: np.ndarray, start: int, stop: int) -> np.ndarray:
        shape = len(genes), stop - start
        num_pairs = shape[0] * shape[1]
        losses = [np.zeros(0)]
        for first in range(0, num_pairs, batch):
            # The last batch is padded with the first pairs.
            candidate, image = np.divmod(np.arange(first, first + batch) % num_pairs, shape[1])
            pair_genes = genes[candidate].astype(np.int32)
            losses.append(_pair_losses(space, params, images, labels, pair_genes, start + image))
        return np.concatenate(losses, dtype=np.float64)[:num_pairs].reshape(shape).sum(axis=1)

    return sum_losses


@functools.partial(jax.jit, static_argnums=0)
def _pair_losses(space: CandidateSpace, params, images, labels, genes, image) -> jax.Array:
    """Loss of each pair of genes int32 [B, G] and index of an image int [B], float32 [B]."""
    structure = space.decode(genes)
    decide = fixed_decisions(structure)
    out = forward_adaptive(ViT(space.spec), params, images[image], structure.groups[0], decide)
    return jax.vmap(cross_entropy)(out.logits, labels[image])
