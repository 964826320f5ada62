"""The one way from image to logits; training, RL, fine-tuning and serving all take it.

image -> group 0 -> [decide -> group g] for g = 1, 2, ... -> logits
"""

from __future__ import annotations

from typing import Any, Callable, NamedTuple

import jax

from prance_jax.models.vit import GroupState, ViT
from prance_jax.spec.structure import GroupChoice, Structure
from prance_jax.tokens.token_set import TokenSet

Params = Any
# Decides group g (1, 2, ...) from the state of inference before it.
Decide = Callable[[int, GroupState], GroupChoice]


class ForwardOutput(NamedTuple):
    """logits: float32 [B, num_classes], for pixels [B, S, S, num_classes]. structure: what was chosen. tokens: what is left after
    the last group."""

    logits: jax.Array
    structure: Structure
    tokens: TokenSet


def fixed_decisions(structure: Structure) -> Decide:
    """Decides by a structure known beforehand, static or per image."""
    return lambda group, state: structure.groups[group]


def forward_first_group(
    model: ViT, params: Params, images: jax.Array, first_choice: GroupChoice
) -> GroupState:
    return model.apply({"params": params}, images, first_choice, method="forward_first_group")


def forward_group(
    model: ViT, params: Params, state: GroupState, choice: GroupChoice, group: int
) -> GroupState:
    return model.apply({"params": params}, state, choice, group, method="forward_group")


def forward_head(model: ViT, params: Params, state: GroupState) -> jax.Array:
    return model.apply({"params": params}, state, method="forward_head")


def forward_adaptive(
    model: ViT, params: Params, images: jax.Array, first_choice: GroupChoice, decide: Decide
) -> ForwardOutput:
    """Runs a batch of images, taking a decision before every group but the first.

    images: [B, S, S, channels]; first: choice of group 0.
    """
    state = forward_first_group(model, params, images, first_choice)
    choices = [first_choice]
    for group in range(1, model.spec.space.groups):
        choices.append(decide(group, state))
        state = forward_group(model, params, state, choices[group], group)
    return ForwardOutput(forward_head(model, params, state), Structure(tuple(choices)), state.tokens)


def forward_rest(
    model: ViT, params: Params, state: GroupState, rest: tuple[GroupChoice, ...], group: int
) -> jax.Array:
    """Logits when the groups from `group` on follow `rest`, from a state of inference before `group`."""
    for index, choice in enumerate(rest):
        state = forward_group(model, params, state, choice, group + index)
    return forward_head(model, params, state)


def init_params(model: ViT, key: jax.Array) -> Params:
    """Fresh float32 parameters: a plain dict."""
    spec = model.spec
    image = jax.ShapeDtypeStruct((1, spec.image_size, spec.image_size, spec.channels), "float32")

    def build(key):
        images = jax.numpy.zeros(image.shape, image.dtype)
        return model.init(key, images, spec.largest)["params"]

    return jax.jit(build)(key)
