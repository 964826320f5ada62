"""Samples, mutates and costs many static structures at once, as rows of indices (genes).

Genes are MLP ratio and width of the first group, which the selector does not choose, then one
action for each decision point.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from prance_jax.selector.actions import ActionSpace
from prance_jax.spec.macs import macs
from prance_jax.spec.model_spec import ModelSpec
from prance_jax.spec.structure import GroupChoice, Structure

# Structures that one call of the compiled program costs.
_COST_BATCH = 8192


@dataclass(frozen=True)
class CandidateSpace:
    """All static structures that the selector can choose, for every choice of the first group.

    Attributes:
      spec: sizes of the network.
      actions: choices of the selector; must be discrete.
    """

    spec: ModelSpec
    actions: ActionSpace

    @functools.cached_property
    def sizes(self) -> np.ndarray:
        """Number of choices of each gene, int [G]; 1 where a group has no layer for a component."""
        space, layers = self.spec.space, self.actions.layers
        sizes = [len(space.ratios), len(space.widths)]
        for num_layers in space.layers[1:]:
            for component, size in enumerate(self.actions.nvec):
                has_layer = component >= 2 * layers or component % layers < num_layers
                sizes.append(size if has_layer else 1)
        return np.array(sizes)

    @functools.cached_property
    def is_keep_rate(self) -> np.ndarray:
        """Whether each gene chooses a keep rate, bool [G]."""
        action = [component >= 2 * self.actions.layers for component in range(self.actions.components)]
        return np.array([False, False] + action * (self.spec.space.groups - 1))

    @property
    def smallest(self) -> np.ndarray:
        """Genes of the smallest structure, int [G]."""
        return np.zeros_like(self.sizes)

    @property
    def largest(self) -> np.ndarray:
        """Genes of the largest structure, int [G]."""
        return self.sizes - 1

    def decode(self, genes: jax.Array) -> Structure:
        """Translates genes into structures, for masked execution.

        Args:
          genes: int32 [N, G].

        Returns:
          A structure whose entries have shape [N].
        """
        space, components = self.spec.space, self.actions.components
        width = jnp.asarray(space.widths, jnp.int32)[genes[:, 1]]
        mlp_dim = space.mlp_dim(width, jnp.asarray(space.ratios, jnp.float32)[genes[:, 0]])
        groups = [GroupChoice((width,) * space.layers[0], (mlp_dim,) * space.layers[0])]
        for group in range(1, space.groups):
            start = 2 + (group - 1) * components
            groups.append(self.actions.decode(genes[:, start : start + components], group))
        return Structure(tuple(groups))

    def structure(self, genes: np.ndarray) -> Structure:
        """Returns the static structure of the genes int [G] of one candidate."""
        space, layers, components = self.spec.space, self.actions.layers, self.actions.components
        groups = [space.uniform(space.widths[genes[1]], space.ratios[genes[0]]).groups[0]]
        for group in range(1, space.groups):
            start = 2 + (group - 1) * components
            action = genes[start : start + components]
            widths = tuple(space.widths[index] for index in action[layers : layers + space.layers[group]])
            ratios = tuple(space.ratios[index] for index in action[: space.layers[group]])
            mlp_dims = tuple(space.mlp_dim(width, ratio) for width, ratio in zip(widths, ratios))
            keep_genes = zip(self.actions.keep_choices, action[2 * layers :])
            keep = tuple(choices[index] for choices, index in keep_genes)
            groups.append(GroupChoice(widths, mlp_dims, keep))
        return Structure(tuple(groups))

    def costs(self, genes: np.ndarray) -> np.ndarray:
        """Counts MACs.

        Args:
          genes: int [N, G].

        Returns:
          float32 [N], exact to about 1e-6 of the value.
        """
        batches = [np.zeros(0, np.float32)]
        for start in range(0, len(genes), _COST_BATCH):
            batch = genes[start : start + _COST_BATCH]
            padded = np.zeros((_COST_BATCH, len(self.sizes)), np.int32)
            padded[: len(batch)] = batch
            batches.append(np.asarray(_costs(self, padded))[: len(batch)])
        return np.concatenate(batches)

    def sample(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Samples candidates, each with a preference for small or large choices.

        Uniform samples rarely fit a tight budget. So choice i of n has a probability proportional
        to exp(size_bias x i / (n - 1)). A candidate has one size bias for widths and MLP ratios,
        and one for keep rates; both are uniform in [-3, 3].

        Args:
          rng: random numbers.
          count: number of candidates, N.

        Returns:
          Genes int [N, G].
        """
        size_bias = rng.uniform(-3, 3, (count, 2))
        columns = []
        for size, kind in zip(self.sizes, self.is_keep_rate.astype(int)):
            cumulative = np.exp(size_bias[:, kind, None] * np.linspace(0, 1, size)).cumsum(axis=1)
            threshold = rng.random((count, 1)) * cumulative[:, -1:]
            columns.append((threshold > cumulative).sum(axis=1))
        return np.stack(columns, axis=1)

    def mutate(self, rng: np.random.Generator, parents: np.ndarray, count: int) -> np.ndarray:
        """Copies random parents and replaces random genes.

        Args:
          rng: random numbers.
          parents: genes int [P, G].
          count: number of mutations, N.

        Returns:
          Genes int [N, G]; some may equal a parent or each other.
        """
        genes = parents[rng.integers(len(parents), size=count)]
        # 1.5 genes change on average, and at least every tenth.
        rate = max(0.1, 1.5 / max((self.sizes > 1).sum(), 1))
        is_changed = rng.random(genes.shape) < rate
        return np.where(is_changed, rng.integers(self.sizes, size=genes.shape), genes)


@functools.partial(jax.jit, static_argnums=0)
def _costs(space: CandidateSpace, genes: jax.Array) -> jax.Array:
    """MACs of genes int32 [N, G], float32 [N]."""
    return jnp.broadcast_to(macs(space.spec, space.decode(genes)).total, genes.shape[:1])
