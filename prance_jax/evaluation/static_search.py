"""Finds the best static structure for a budget: the baseline that an adaptive method has to beat.

An evolutionary search on validation images. It covers all discrete choices of the selector, and the
first group's structure, which the selector does not choose. All candidates run through one masked
program.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prance_jax.core.losses import cross_entropy
from prance_jax.data.source import Split
from prance_jax.models.forward import fixed_decisions, forward_adaptive
from prance_jax.models.vit import ViT
from prance_jax.selector.actions import ActionSpace
from prance_jax.spec.macs import macs
from prance_jax.spec.model_spec import ModelSpec
from prance_jax.spec.structure import GroupChoice, Structure

Genes = tuple[int, ...]
"""Indices of choices: MLP ratio and width of the first group, then one action per decision point."""


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
      candidates: number of structures that are evaluated. The first third is random, all others are
        mutations of the best so far.
      images: number of images, from the start of `split`.
      seed: of the search.
      parents: number of best structures that are mutated.

    Returns:
      The structure and its loss. Where no candidate fits, the smallest structure.
    """
    rng = np.random.default_rng(seed)
    evaluate = _evaluator(spec, params, split, images)
    first_choices = (len(spec.space.ratios), len(spec.space.widths))
    sizes = first_choices + actions.nvec * (spec.space.groups - 1)
    loss_of: dict[Genes, float] = {}

    def fits_budget(genes: Genes) -> bool:
        return 0.9 * max_macs <= macs(spec, _structure(spec, actions, genes)).total <= max_macs

    def random_genes() -> Genes:
        # Uniform draws rarely fit a tight limit, so each draw prefers small or large choices.
        size_bias = rng.uniform(-3, 3)
        weights = [np.exp(size_bias * np.linspace(0, 1, size)) for size in sizes]
        return tuple(int(rng.choice(size, p=weight / weight.sum())) for size, weight in zip(sizes, weights))

    def mutated(genes: Genes) -> Genes:
        changed = rng.random(len(sizes)) < max(0.1, 1.5 / len(sizes))
        return tuple(
            int(rng.integers(size)) if change else gene for gene, size, change in zip(genes, sizes, changed)
        )

    for number in range(candidates):
        best = sorted(loss_of, key=loss_of.get)[:parents]
        for _ in range(5000):
            genes = (
                random_genes()
                if number < candidates // 3 or not best
                else mutated(best[rng.integers(len(best))])
            )
            if genes not in loss_of and fits_budget(genes):
                break
        else:
            continue
        loss_of[genes] = evaluate(_structure(spec, actions, genes))
    if not loss_of:
        smallest = _structure(spec, actions, (0,) * len(sizes))
        return smallest, evaluate(smallest)
    best_genes = min(loss_of, key=loss_of.get)
    return _structure(spec, actions, best_genes), loss_of[best_genes]


def _structure(spec: ModelSpec, actions: ActionSpace, genes: Genes) -> Structure:
    """Returns the static structure of `genes`."""
    space, layers = spec.space, actions.layers
    groups = [space.uniform(space.widths[genes[1]], space.ratios[genes[0]]).groups[0]]
    for group in range(1, space.groups):
        start = 2 + (group - 1) * actions.components
        action = genes[start : start + actions.components]
        widths = tuple(space.widths[index] for index in action[layers : layers + space.layers[group]])
        ratios = tuple(space.ratios[index] for index in action[: space.layers[group]])
        mlp_dims = tuple(space.mlp_dim(width, ratio) for width, ratio in zip(widths, ratios))
        keep = tuple(choices[index] for choices, index in zip(actions.keep_choices, action[2 * layers :]))
        groups.append(GroupChoice(widths, mlp_dims, keep))
    return Structure(tuple(groups))


def _evaluator(spec: ModelSpec, params: Any, split: Split, count: int):
    """Returns structure -> loss: one compiled program for structures as arrays of shape [1]."""
    model = ViT(spec)
    images, labels = jnp.asarray(split.images[:count]), jnp.asarray(split.labels[:count])

    @jax.jit
    def loss(params, images, labels, structure):
        batched = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, labels.shape[:1]), structure)
        decide = fixed_decisions(batched)
        out = forward_adaptive(model, params, images, batched.groups[0], decide)
        return cross_entropy(out.logits, labels)

    def evaluate(structure: Structure) -> float:
        arrays = jax.tree.map(
            lambda leaf: jnp.asarray([leaf], jnp.int32 if isinstance(leaf, int) else jnp.float32), structure
        )
        return float(loss(params, images, labels, arrays))

    return evaluate
