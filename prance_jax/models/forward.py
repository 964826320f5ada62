"""The forward pass with decisions; fine-tuning, evaluation, RL and serving all use its parts.

`ViT.__call__` is the same under a structure known beforehand, for stage one. RL and the executor run the parts between two
decisions by themselves: `selector/environment.py`, `adaptive/executor.py`.

image -> group 0 -> [decide -> group g] for g = 1, 2, ... -> logits
"""

from __future__ import annotations

from typing import Any, Callable, NamedTuple

import jax

from prance_jax.models.outputs import GroupState
from prance_jax.models.token_steps import LayerSizes
from prance_jax.models.vit import ViT
from prance_jax.spec.structure import GroupChoice, Structure
from prance_jax.tokens.token_set import TokenSet

Params = Any
# (index of a group from 1, state of inference before it) -> structure and keep rates of the group.
Decide = Callable[[int, GroupState], GroupChoice]


class ForwardOutput(NamedTuple):
    """Output of a forward pass with decisions.

    Attributes:
      logits: float32 [B, num_classes]; for pixels [B, S, S, num_classes].
      structure: the structure that was chosen, per image or static.
      tokens: tokens after the attention of the last layer; features of class tokens alone, see
        `ModelSpec.num_queries`. `token_of_patch` is that of all tokens that remain.
    """

    logits: jax.Array
    structure: Structure
    tokens: TokenSet


def fixed_decisions(structure: Structure) -> Decide:
    """Returns decisions that follow a structure known beforehand, static or per image."""
    return lambda group, state: structure.groups[group]


def forward_first_group(
    model: ViT,
    params: Params,
    images: jax.Array,
    first_choice: GroupChoice,
    added: jax.Array | None = None,
    scores: jax.Array | None = None,
) -> GroupState:
    """Embeds images and runs group 0; see `ViT.forward_first_group`.

    Args:
      model: the network.
      params: its parameters.
      images: float [B, S, S, channels].
      first_choice: structure of group 0.
      added: [B, spec.all_tokens, width], added to the embedding of prefix tokens and patches; None adds nothing.
      scores: float32 [B, spec.cells], which choose the cells that are split; None without `spec.refined_cells`.
    """
    return model.apply({"params": params}, images, first_choice, added, scores, method="forward_first_group")


def forward_group(
    model: ViT, params: Params, state: GroupState, choice: GroupChoice, group: int
) -> GroupState:
    """Runs a group under a decision; see `ViT.forward_group`.

    Args:
      model: the network.
      params: its parameters.
      state: state of inference before the group.
      choice: structure and keep rates of the group.
      group: index of the group, from 1.
    """
    return model.apply({"params": params}, state, choice, group, method="forward_group")


def forward_head(model: ViT, params: Params, state: GroupState) -> jax.Array:
    """Finishes the network; see `ViT.forward_head`.

    Args:
      model: the network.
      params: its parameters.
      state: state of inference after the last group.
    """
    return model.apply({"params": params}, state, method="forward_head")


def forward_exit(model: ViT, params: Params, state: GroupState, group: int) -> jax.Array:
    """Answers at the end of a group: logits float32 [B, num_classes]; for pixels [B, S, S, num_classes].

    The MLP of the group's last layer runs on the tokens that a head reads, at the group's own width; then the norm and
    classifier of the exit, after the last group those of the head.

    Args:
      model: the network.
      params: its parameters.
      state: state of inference after the group.
      group: index of the group, one of `spec.exits` or the last one.
    """
    return model.apply({"params": params}, state, group, method=_exit_logits)


def _exit_logits(model: ViT, state: GroupState, group: int) -> jax.Array:
    spec, size = model.spec, LayerSizes(state.width, state.width, state.mlp_dim)
    tokens = model.apply_last_mlp(state.tokens, size, only_read=True, group=group)
    if group == spec.space.groups - 1:
        return model.head_logits(tokens, state.width)
    return model.exits[spec.exits.index(group)](tokens, state.width)


def forward_adaptive(
    model: ViT, params: Params, images: jax.Array, first_choice: GroupChoice, decide: Decide
) -> ForwardOutput:
    """Classifies images, choosing the structure of each layer group on the way.

    Args:
      model: the network.
      params: its parameters.
      images: float [B, S, S, channels], normalised as in training.
      first_choice: structure of group 0, before any decision.
      decide: (group index from 1, GroupState) -> GroupChoice.

    Returns:
      Logits float32 [B, num_classes], the structure used, the remaining tokens.

    Reference: PRANCE, arXiv 2407.05010, section 3.
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
    """Finishes the network under choices that are known beforehand.

    Args:
      model: the network.
      params: its parameters.
      state: state of inference before `group`.
      rest: choices of the groups from `group` on.
      group: index of the first group to run.

    Returns:
      Logits float32 [B, num_classes].
    """
    for index, choice in enumerate(rest):
        state = forward_group(model, params, state, choice, group + index)
    return forward_head(model, params, state)


def init_params(model: ViT, key: jax.Array) -> Params:
    """Initialises float32 parameters, a plain dict.

    Args:
      model: the network.
      key: of the random numbers.
    """
    spec = model.spec.unrefined
    image = jax.ShapeDtypeStruct((1, *spec.image_shape), "float32")

    def run_all(model: ViT, images: jax.Array) -> None:
        """Uses every part of the network, so that every part gets parameters."""
        state = model.forward_first_group(images, spec.largest.groups[0])
        for group, choice in enumerate(spec.largest.groups):
            state = model.forward_group(state, choice, group) if group else state
            if group in spec.exits:
                _exit_logits(model, state, group)
        model.forward_head(state)

    def build(key):
        return ViT(spec).init(key, jax.numpy.zeros(image.shape, image.dtype), method=run_all)["params"]

    return jax.jit(build)(key)
