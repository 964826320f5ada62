"""The one way from image to logits; training, RL, fine-tuning and serving all take it.

image -> group 0 -> [decide -> group g] for g = 1, 2, ... -> logits
"""

from __future__ import annotations

from typing import Any, Callable, NamedTuple

import jax

from prance_jax.models.vit import Midway, ViT
from prance_jax.spec.structure import GroupChoice, Structure
from prance_jax.tokens.token_set import TokenSet

Params = Any
# Decides group g (1, 2, ...) from the state of inference before it.
Decide = Callable[[int, Midway], GroupChoice]


class Outcome(NamedTuple):
    """logits: float32 [B, num_classes], for pixels [B, S, S, num_classes]. structure: what was chosen. tokens: what is left after
    the last group."""

    logits: jax.Array
    structure: Structure
    tokens: TokenSet


def follow(structure: Structure) -> Decide:
    """Decides by a structure known beforehand, static or per image."""
    return lambda group, midway: structure.groups[group]


def begin(model: ViT, params: Params, images: jax.Array, first: GroupChoice) -> Midway:
    return model.apply({"params": params}, images, first, method="begin")


def advance(model: ViT, params: Params, midway: Midway, choice: GroupChoice, group: int) -> Midway:
    return model.apply({"params": params}, midway, choice, group, method="advance")


def finish(model: ViT, params: Params, midway: Midway) -> jax.Array:
    return model.apply({"params": params}, midway, method="finish")


def walk(model: ViT, params: Params, images: jax.Array, first: GroupChoice, decide: Decide) -> Outcome:
    """Runs a batch of images, taking a decision before every group but the first.

    images: [B, S, S, channels]; first: choice of group 0.
    """
    midway = begin(model, params, images, first)
    choices = [first]
    for group in range(1, model.spec.space.groups):
        choices.append(decide(group, midway))
        midway = advance(model, params, midway, choices[group], group)
    return Outcome(finish(model, params, midway), Structure(tuple(choices)), midway.tokens)


def complete(
    model: ViT, params: Params, midway: Midway, rest: tuple[GroupChoice, ...], group: int
) -> jax.Array:
    """Logits when the groups from `group` on follow `rest`, from a state of inference before `group`."""
    for index, choice in enumerate(rest):
        midway = advance(model, params, midway, choice, group + index)
    return finish(model, params, midway)


def init(model: ViT, key: jax.Array) -> Params:
    """Fresh float32 parameters: a plain dict."""
    spec = model.spec
    image = jax.ShapeDtypeStruct((1, spec.image_size, spec.image_size, spec.channels), "float32")

    def build(key):
        images = jax.numpy.zeros(image.shape, image.dtype)
        return model.init(key, images, spec.largest)["params"]

    return jax.jit(build)(key)
