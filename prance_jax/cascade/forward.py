"""The forward pass of a cascade: one step, the whole tree, and the pass with decisions.

image -> decide -> [step -> answer -> decide: stop, deeper or again] -> answer

`forward_step` runs one step at its static structure (compact execution); table and executor are built from it.
`forward_cascade` runs all images of a batch through all looks and groups and masks what an image does not use (masked
execution), for training and evaluation. Both give the same answers.
"""

from __future__ import annotations

import functools
from typing import Any, Callable, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from prance_jax.cascade.looks import HandedOn, hand_on, images_of_look, look_params
from prance_jax.cascade.observation import NUM_FEATURES, exit_features
from prance_jax.models.forward import forward_exit, forward_first_group, forward_group
from prance_jax.models.outputs import GroupState
from prance_jax.models.vit import ViT
from prance_jax.spec.cascade import START, Cascade
from prance_jax.spec.structure import GroupChoice

Params = Any
# (node int32 [B], features of the answer there, float32 [B, NUM_FEATURES]) -> action int32 [B]; 0 stops.
# Actions must be available at their nodes, see `Cascade.next_nodes`.
DecideAtExit = Callable[[jax.Array, jax.Array], jax.Array]


class NodeOutput(NamedTuple):
    """State and answer at a node.

    Attributes:
      state: state of inference after the step.
      logits: float32 [B, num_classes].
      features: float32 [B, NUM_FEATURES], see `exit_features`.
    """

    state: GroupState
    logits: jax.Array
    features: jax.Array


def forward_step(
    cascade: Cascade, params: Params, images: jax.Array, node: int, before: NodeOutput | None
) -> NodeOutput:
    """Runs the step that ends at a node.

    Args:
      cascade: the tree.
      params: parameters of the cascade.
      images: float [B, S, S, channels], at full size.
      node: node at which the step ends.
      before: output at the parent; None if that is the start.
    """
    step = cascade.steps[node - 1]
    spec, weights = cascade.spec.looks[step.look].spec, look_params(cascade.spec, params, step.look)
    model, state = ViT(spec), None
    for group, choice in enumerate(step.choices, start=step.group):
        if group == 0:
            handed_on = HandedOn()
            if before is not None:
                from_look = cascade.steps[step.parent - 1].look
                width = choice.widths[0]
                handed_on = hand_on(cascade.spec, params, from_look, before.state, step.look, width)
            small = images_of_look(cascade.spec, images, step.look)
            state = forward_first_group(model, weights, small, choice, *handed_on)
        else:
            state = forward_group(model, weights, before.state if state is None else state, choice, group)
    logits = forward_exit(model, weights, state, step.last_group)
    return NodeOutput(state, logits, exit_features(logits, None if before is None else before.logits, state))


def forward_path(cascade: Cascade, params: Params, images: jax.Array, node: int) -> NodeOutput:
    """Runs all steps on the way to a node, each at its static structure.

    Args:
      cascade: the tree.
      params: parameters of the cascade.
      images: float [B, S, S, channels].
      node: where to stop.
    """
    output = None
    for index in cascade.path(node):
        output = forward_step(cascade, params, images, index, output)
    return output


def forward_tree(cascade: Cascade, params: Params, images: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Runs every step of the tree once on all images.

    Args:
      cascade: the tree.
      params: parameters of the cascade.
      images: float [B, S, S, channels].

    Returns:
      Logits float32 [B, nodes, num_classes] and features float32 [B, nodes, NUM_FEATURES]; zero at the start.
    """
    outputs: list[NodeOutput | None] = [None]
    for node, step in enumerate(cascade.steps, start=1):
        outputs.append(forward_step(cascade, params, images, node, outputs[step.parent]))
    logits = jnp.stack([jnp.zeros_like(outputs[1].logits)] + [out.logits for out in outputs[1:]], axis=1)
    features = jnp.stack(
        [jnp.zeros_like(outputs[1].features)] + [out.features for out in outputs[1:]], axis=1
    )
    return logits, features


class Answer(NamedTuple):
    """Answers of a batch at one exit of one look.

    Attributes:
      logits: float32 [B, num_classes].
      reached: bool [B], whether an image came to the exit; elsewhere the logits mean nothing.
      look: index of the look.
      group: group at whose end the exit is.
    """

    logits: jax.Array
    reached: jax.Array
    look: int
    group: int


class CascadeOutput(NamedTuple):
    """Output of the forward pass with decisions.

    Attributes:
      logits: float32 [B, num_classes], the answers with which the images stopped.
      node: int32 [B], where they stopped.
      answers: the answers at all exits, in order.
    """

    logits: jax.Array
    node: jax.Array
    answers: tuple[Answer, ...]


def forward_cascade(
    cascade: Cascade, params: Params, images: jax.Array, decide: DecideAtExit
) -> CascadeOutput:
    """Classifies images, deciding at every exit whether to stop and how to go on.

    All images run through all looks and groups at full array size; sizes per image are masked, and what an image does not
    run is discarded.

    Args:
      cascade: the tree.
      params: parameters of the cascade.
      images: float [B, S, S, channels], normalised as in training.
      decide: takes the decisions; called for all images at every exit, also where the action is not used.
    """
    batch, next_nodes = images.shape[0], jnp.asarray(cascade.next_nodes)
    node, logits = (
        jnp.full(batch, START, jnp.int32),
        jnp.zeros((batch, cascade.spec.last.num_classes), jnp.float32),
    )
    features, handed_on, answers = jnp.zeros((batch, NUM_FEATURES), jnp.float32), {}, []

    target = next_nodes[node, decide(node, features)]
    for look, group, ends in _positions(cascade):
        spec, weights = cascade.spec.looks[look].spec, look_params(cascade.spec, params, look)
        model, choice = ViT(spec), _choice_of(cascade, look, group, target)
        if group == 0:
            small = images_of_look(cascade.spec, images, look)
            state = forward_first_group(model, weights, small, choice, *handed_on.get(look, HandedOn()))
        else:
            state = forward_group(model, weights, state, choice, group)
        if not ends:
            continue
        answer = forward_exit(model, weights, state, group)
        reached = jnp.isin(target, jnp.asarray(ends, jnp.int32))
        # An image may pass an exit without an answer, or begin at a later look.
        new_features = _where(
            node == START, exit_features(answer, None, state), exit_features(answer, logits, state)
        )
        answers.append(Answer(answer, reached, look, group))
        logits = _where(reached, answer, logits)
        node, features = jnp.where(reached, target, node), _where(reached, new_features, features)
        target = jnp.where(reached, next_nodes[node, decide(node, features)], target)
        for later in _looks_after(cascade, ends):
            width = _choice_of(cascade, later, 0, target).widths[0]
            new = hand_on(cascade.spec, params, look, state, later, width)
            old = handed_on.get(later, jax.tree.map(jnp.zeros_like, new))
            begins = reached & jnp.isin(target, jnp.asarray(_first_nodes(cascade, later), jnp.int32))
            handed_on[later] = jax.tree.map(functools.partial(_where, begins), new, old)
    return CascadeOutput(logits, node, tuple(answers))


def _positions(cascade: Cascade) -> list[tuple[int, int, list[int]]]:
    """All (look, group, nodes that end there) that some step runs, in order."""
    runs = {(step.look, group) for step in cascade.steps for group in range(step.group, step.last_group + 1)}
    ends = {position: [] for position in runs}
    for node, step in enumerate(cascade.steps, start=1):
        ends[step.look, step.last_group].append(node)
    return [(look, group, ends[look, group]) for look, group in sorted(runs)]


def _choice_of(cascade: Cascade, look: int, group: int, target: jax.Array) -> GroupChoice:
    """The choice of one group of a look on the way to each image's target.

    Static where all steps have the same; else entries [B], those of the largest structure for images that do not run it.
    """
    rows: list[GroupChoice | None] = [None]
    for node, step in enumerate(cascade.steps, start=1):
        groups = cascade.groups(node) if step.look == look else ()
        rows.append(groups[group] if group < len(groups) else None)
    choices = {row for row in rows if row is not None}
    if len(choices) == 1:
        return choices.pop()
    default = cascade.spec.looks[look].spec.largest.groups[group]
    columns = jax.tree.map(
        lambda *values: np.asarray(values), *(default if row is None else row for row in rows)
    )
    return jax.tree.map(
        lambda column: jnp.asarray(column, jnp.int32 if column.dtype.kind == "i" else jnp.float32)[target],
        columns,
    )


def _first_nodes(cascade: Cascade, look: int) -> list[int]:
    """Nodes at which steps end that begin a look."""
    return [n for n, step in enumerate(cascade.steps, start=1) if step.look == look and step.group == 0]


def _looks_after(cascade: Cascade, ends: list[int]) -> list[int]:
    """Looks that can begin right after some of these nodes."""
    steps = [cascade.steps[child - 1] for node in ends for child in cascade.children[node]]
    return sorted({step.look for step in steps if step.group == 0})


def _where(condition: jax.Array, new: jax.Array, old: jax.Array) -> jax.Array:
    """Chooses per image."""
    return jnp.where(condition.reshape(condition.shape + (1,) * (new.ndim - 1)), new, old)
