"""Cascades: networks that look at an image several times, with several exits.

A *look* is one pass of a ViT over the image, on a grid of its own. A *step* runs some groups of one look at a static
structure and ends in an exit, with an answer. The steps form a tree: at every node an image stops
with its answer, or goes on: deeper in the same look, or in a later one.

Reference: DVT, arXiv 2105.15075; CF-ViT, arXiv 2203.03821.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from prance_jax.core.errors import UserError
from prance_jax.spec.macs import exit_macs, prefix_macs, single_look_macs
from prance_jax.spec.model_spec import ModelSpec
from prance_jax.spec.structure import GroupChoice

SHARES = ("all", "all_but_norms", "none")
_BLOCK_FIELDS = ("space", "patch_size", "residual_maps", "channels_left")
START = 0
"""The node before any step; no answer is known there."""


@dataclass(frozen=True)
class Look:
    """One pass over the image.

    Attributes:
      spec: the network of the look; the image is resized to `spec.image_size`.
      shares: weights that it has in common with the last look: 'all', except positions and classifiers;
        'all_but_norms', without norms and biases either; 'none'.
    """

    spec: ModelSpec
    shares: str = "none"

    def __post_init__(self):
        if self.shares not in SHARES:
            raise UserError(f"look: shares={self.shares!r} is not known; choose from {', '.join(SHARES)}")
        size, classes = self.spec.image_size, self.spec.num_classes
        if not classes or len(set(self.spec.grid)) > 1:
            raise UserError(f"look: it needs classes, a square; num_classes={classes}, image_size={size}")


@dataclass(frozen=True)
class CascadeSpec:
    """The looks of a cascade, in the order of their use.

    Attributes:
      looks: the looks; the last one is the network itself, see `dense`.

    Raises:
      UserError: there is no look, looks do not fit each other, or the networks do not give one class per image.
    """

    looks: tuple[Look, ...]

    def __post_init__(self):
        if not self.looks:
            raise UserError("a cascade has no look; give at least one")
        if self.looks[-1].shares != "none":
            raise UserError(
                f"the last look has all weights; its shares must be 'none', not {self.looks[-1].shares!r}"
            )
        for name in ("pixels", "multi_label"):
            if getattr(self.last, name):
                raise UserError(f"a cascade stops at one class per image; {name} must be False, it is True")
        for number, look in enumerate(self.looks[:-1]):
            spec, last = look.spec, self.last
            for field in ("num_classes", "channels", "distilled", "pixels", "dtype", "architecture"):
                if getattr(spec, field) != getattr(last, field):
                    values = f"{getattr(spec, field)}, the last look {getattr(last, field)}"
                    raise UserError(f"look {number} has {field}={values}; both must be the same")
            if spec.num_queries(spec.space.depth - 1) is not None:
                raise UserError(
                    f"look {number} needs full_last_layer=True: a later look recycles all its tokens"
                )
            if look.shares != "none" and not have_same_blocks(spec, last):
                raise UserError(
                    f"look {number} has shares={look.shares!r}, so it must have the last look's "
                    f"{', '.join(_BLOCK_FIELDS)}; or set shares='none'"
                )
            for later, refined in enumerate(self.looks[number + 1 :], start=number + 1):
                side, cells = (round(count**0.5) for count in (spec.patches, refined.spec.cells))
                if refined.spec.refined_cells is not None and side % cells and cells % side:
                    raise UserError(
                        f"look {later} has {cells} cells on a side, look {number} {side} patches; one must divide the other"
                    )

    @property
    def last(self) -> ModelSpec:
        """The network of the last look."""
        return self.looks[-1].spec

    @property
    def unrefined(self) -> CascadeSpec:
        """The looks with every patch as a token: no look needs another; weights are the same."""
        return CascadeSpec(tuple(replace(look, spec=look.spec.unrefined) for look in self.looks))

    @property
    def dense(self) -> ModelSpec:
        """The dense network: the last look with every patch as a token."""
        return self.last.unrefined

    @property
    def dense_macs(self) -> int:
        """MACs of the largest structure of the dense network."""
        return single_look_macs(self.dense, self.dense.largest)


class Step(NamedTuple):
    """What runs between two decisions.

    Attributes:
      parent: node at which the step starts; 0 is the start.
      look: index of the look.
      group: first group that runs; 0 starts the look.
      choices: static choices of the groups from `group` on.
    """

    parent: int
    look: int
    group: int
    choices: tuple[GroupChoice, ...]

    @property
    def last_group(self) -> int:
        """Last group that runs; the step ends in its exit."""
        return self.group + len(self.choices) - 1


@dataclass(frozen=True)
class Cascade:
    """A cascade with its tree of steps. Hashable, so it can be static under `jit`.

    Node 0 is the start, node n is where `steps[n - 1]` ends. At a node, action 0 stops and action a goes on by the
    a-th child.

    Attributes:
      spec: the looks.
      steps: the steps, parents before children.

    Raises:
      UserError: there is no step, or a step does not continue its parent, does not fit the search space of
        its look, or does not end in an exit.
    """

    spec: CascadeSpec
    steps: tuple[Step, ...]

    def __post_init__(self):
        if not self.steps:
            raise UserError("a cascade has no step; give at least one that begins a look")
        for node, step in enumerate(self.steps, start=1):
            where = f"cascade, step {node} (look {step.look}, groups {step.group} to {step.last_group})"
            if not 0 <= step.parent < node or not 0 <= step.look < len(self.spec.looks) or not step.choices:
                raise UserError(
                    f"{where}: needs a parent from 0 to {node - 1}, a look from 0 to {len(self.spec.looks) - 1} "
                    "and at least one choice"
                )
            self._check_parent(step, where)
            spec = self.spec.looks[step.look].spec
            ends = (*spec.exits, spec.space.groups - 1)
            if step.last_group not in ends:
                raise UserError(
                    f"{where}: does not end in an exit; look {step.look} has exits after groups {ends}"
                )
            for group, choice in enumerate(step.choices, start=step.group):
                sizes = len(choice.widths), len(choice.mlp_dims), len(choice.keep)
                layers, rates = spec.space.layers[group], spec.rates if group else 0
                if sizes != (layers, layers, rates):
                    raise UserError(
                        f"{where}: the choice of group {group} has {sizes[0]} widths, {sizes[1]} mlp_dims and "
                        f"{sizes[2]} keep rates; it needs {layers}, {layers} and {rates}"
                    )

    def _check_parent(self, step: Step, where: str) -> None:
        parent = self.steps[step.parent - 1] if step.parent else None
        if parent is None and self.spec.looks[step.look].spec.refined_cells is not None:
            raise UserError(f"{where}: has refined_cells, so it must begin after an earlier look")
        if step.group:
            if parent is None or (parent.look, parent.last_group + 1) != (step.look, step.group):
                raise UserError(
                    f"{where}: does not continue node {step.parent}; the parent must end after group "
                    f"{step.group - 1} of look {step.look}"
                )
        elif parent is not None:
            if parent.look >= step.look:
                raise UserError(
                    f"{where}: cannot begin after look {parent.look}; a look begins at the start or after an "
                    "earlier look"
                )
            width, expected = (
                self.spec.looks[look].spec.space.super_width for look in (parent.look, step.look - 1)
            )
            if width != expected:
                raise UserError(
                    f"{where}: begins after look {parent.look}, whose stored width is {width}; the weights for "
                    f"recycled tokens are those of look {step.look - 1}, whose stored width is {expected}"
                )

    @property
    def num_nodes(self) -> int:
        """Number of nodes, the start counted."""
        return len(self.steps) + 1

    @functools.cached_property
    def children(self) -> tuple[tuple[int, ...], ...]:
        """Nodes that can follow each node."""
        return tuple(
            tuple(child for child, step in enumerate(self.steps, start=1) if step.parent == node)
            for node in range(self.num_nodes)
        )

    @property
    def num_actions(self) -> int:
        """Actions at a node, at most: stop, or one of its steps."""
        return 1 + max(map(len, self.children))

    @functools.cached_property
    def next_nodes(self) -> np.ndarray:
        """int32 [nodes, actions]: where an action leads; the node itself for 'stop', -1 if there is no such action."""
        table = np.full((self.num_nodes, self.num_actions), -1, np.int32)
        for node, children in enumerate(self.children):
            table[node, 1 : 1 + len(children)] = children
        table[1:, 0] = np.arange(1, self.num_nodes)
        return table

    def path(self, node: int) -> tuple[int, ...]:
        """Returns the nodes from the first step to `node`, the start left out."""
        nodes = []
        while node:
            nodes.append(node)
            node = self.steps[node - 1].parent
        return tuple(reversed(nodes))

    @functools.cached_property
    def horizon(self) -> int:
        """Steps of an image, at most."""
        return max(len(self.path(node)) for node in range(self.num_nodes))

    def groups(self, node: int) -> tuple[GroupChoice, ...]:
        """Returns the choices of the look in which `node` is, from group 0 to its end."""
        step = self.steps[node - 1]
        return (self.groups(step.parent) if step.group else ()) + step.choices

    @functools.cached_property
    def macs(self) -> np.ndarray:
        """float64 [nodes]: MACs of an image that stops at a node, all answers on the way counted.

        Decisions are left out, and so is the resizing of images and grids, as in the papers.
        """
        total = np.zeros(self.num_nodes)
        for node, step in enumerate(self.steps, start=1):
            spec, groups = self.spec.looks[step.look].spec, self.groups(node)
            run = prefix_macs(spec, groups) - (prefix_macs(spec, groups[: step.group]) if step.group else 0)
            if step.parent and not step.group:
                run += self._recycle_macs(step.parent, groups[0].widths[0])
            total[node] = total[step.parent] + run + exit_macs(spec, groups)
        return total

    def _recycle_macs(self, node: int, width: int) -> int:
        """MACs of the map from the tokens at a node to the embedding of the next look."""
        step = self.steps[node - 1]
        spec = self.spec.looks[step.look].spec
        count = spec.tokens
        for group in self.groups(node)[1:]:
            count = spec.tokens_after(count, group.keep)[-1]
        return count * step.choices[-1].widths[-1] * width


def have_same_blocks(spec: ModelSpec, other: ModelSpec) -> bool:
    """Returns whether two networks can have the same weights, except positions and classifiers.

    Args:
      spec: a network.
      other: another network.
    """
    return all(getattr(spec, field) == getattr(other, field) for field in _BLOCK_FIELDS)
