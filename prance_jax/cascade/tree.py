"""Builds the tree of steps of a cascade from a few structures of each look."""

from __future__ import annotations

from prance_jax.spec.cascade import START, Cascade, CascadeSpec, Step
from prance_jax.spec.structure import Structure


def grow_tree(
    spec: CascadeSpec,
    structures: tuple[tuple[Structure, ...], ...],
    begin: tuple[tuple[int, int], ...],
    skips_looks: bool = True,
) -> Cascade:
    """Grows the tree in which an image goes on by every structure that it has not passed in cost.

    At an exit inside a look an image may finish the look by the rest of its structure or of a larger one. At any exit it
    may begin a later look, at any of that look's structures.

    Args:
      spec: the looks.
      structures: static structures of each look, from the cheapest to the dearest.
      begin: (look, index of the structure) with which an image may begin.
      skips_looks: whether any later look may follow a look, or only the next one.
    """
    steps: list[Step] = []

    def grow(parent: int, look: int, group: int, index: int) -> None:
        """Adds the step from `group` of a structure to its next exit, and what can follow."""
        vit, groups = spec.looks[look].spec, structures[look][index].groups
        ends = [*(exit_ for exit_ in vit.exits if exit_ >= group), vit.space.groups - 1]
        step = Step(parent, look, group, groups[group : ends[0] + 1])
        if step in steps:
            return
        steps.append(step)
        node = len(steps)
        if step.last_group < vit.space.groups - 1:
            for larger in range(index, len(structures[look])):
                grow(node, look, step.last_group + 1, larger)
        for later in range(look + 1, len(spec.looks) if skips_looks else min(look + 2, len(spec.looks))):
            for other in range(len(structures[later])):
                grow(node, later, 0, other)

    for look, index in sorted(begin):  # cheaper ones first: more can follow them
        grow(START, look, 0, index)
    return Cascade(spec, tuple(steps))
