"""Passes through the looks of a cascade without decisions, for the stages that train them."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax

from prance_jax.cascade.looks import HandedOn, hand_on, images_of_look, look_params
from prance_jax.models.forward import forward_exit, forward_first_group, forward_group
from prance_jax.models.outputs import GroupState
from prance_jax.models.vit import ViT
from prance_jax.spec.cascade import CascadeSpec
from prance_jax.spec.structure import Structure

Params = Any


class LookOutput(NamedTuple):
    """Output of one whole look.

    Attributes:
      state: state of inference after its last group.
      answers: logits float32 [B, num_classes] at every exit, then at the head.
    """

    state: GroupState
    answers: tuple[jax.Array, ...]


def forward_look(
    spec: CascadeSpec,
    params: Params,
    images: jax.Array,
    look: int,
    structure: Structure,
    before: tuple[int, GroupState] | None = None,
) -> LookOutput:
    """Runs one look to its end and answers at all its exits.

    Args:
      spec: the looks.
      params: parameters of the cascade.
      images: float [B, S, S, channels], at full size.
      look: index of the look.
      structure: its structure, static or per image.
      before: index and last state of the look whose tokens are recycled; None for a first look, whose
        `refined_cells` must be None, see `CascadeSpec.unrefined`.
    """
    vit, weights = spec.looks[look].spec, look_params(spec, params, look)
    model, handed_on, answers = ViT(vit), HandedOn(), []
    first_choice = structure.groups[0]
    if before is not None:
        handed_on = hand_on(spec, params, *before, look, first_choice.widths[0])
    small = images_of_look(spec, images, look)
    state = forward_first_group(model, weights, small, first_choice, *handed_on)
    for group, choice in enumerate(structure.groups):
        state = forward_group(model, weights, state, choice, group) if group else state
        if group in vit.exits or group == vit.space.groups - 1:
            answers.append(forward_exit(model, weights, state, group))
    return LookOutput(state, tuple(answers))
