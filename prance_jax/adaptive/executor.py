"""The adaptive executor: per-image decisions that save real time, in one compiled program of static shapes.

At every decision point the batch is put in order of the plans that its images need and cut into chunks. A chunk runs
the largest plan among its members: `lax.map` over chunks, `lax.switch` over plans, so that only that branch is run.
Inside its plan every image keeps its own widths and tokens by masks (`Within`). So the result is that of masked
execution, whatever else is in the batch: plans decide what it costs, never what comes out.
"""

from __future__ import annotations

import functools
from typing import Any, Callable, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from prance_jax.adaptive.buckets import Plan, Plans
from prance_jax.core.sizes import Within, number
from prance_jax.models.forward import advance, begin, finish
from prance_jax.models.vit import Midway, ViT
from prance_jax.selector.policies import Rule
from prance_jax.spec.structure import Structure
from prance_jax.tokens.token_set import resized

Tree = Any


class Served(NamedTuple):
    """What the executor tells of a batch, in input order.

    logits: float32 [B, num_classes]. structure: what was decided, per image. owners: after each decision, for every
    patch the token that carries it, -1 once it was pruned, int32 [B, P] each. needed, run_in: index of the plan that an
    image needed, and of the one that its chunk ran, int32 [B] per decision.
    """

    logits: jax.Array
    structure: Structure
    owners: tuple[jax.Array, ...]
    needed: tuple[jax.Array, ...]
    run_in: tuple[jax.Array, ...]


def serve(
    plans: Plans, rule: Rule, params: Tree, variables: Tree, images: jax.Array, key: jax.Array, chunk: int = 8
) -> Served:
    """Runs a batch of images; pure, to be jitted by the caller with `plans`, `rule` and `chunk` static.

    images: [B, S, S, channels]. rule, variables, key: who decides, see `selector.decide`. chunk: images that share a
    plan, at most; small chunks round less, large ones use wide hardware better. A batch of one chunk is not sorted.
    """
    model, batch, last = ViT(plans.spec), images.shape[0], plans.spec.space.groups - 1
    decide = rule.decide(variables, key)
    state = begin(model, params, images, plans.first)
    choices, owners, needed, run_in = [plans.first], [], [], []
    arrived = jnp.zeros(batch, jnp.int32)
    for group in range(1, last + 1):
        choice = decide(group, state)
        # A rule may decide for all images at once; chunks need it per image.
        choice = jax.tree.map(lambda size: jnp.broadcast_to(size, (batch,)), choice)
        plan = plans.index(group, choice, jnp.broadcast_to(state.tokens.count, (batch,)))
        branches = _branches(plans, model, params, group)
        state, ran = in_chunks(branches, plan, arrived, (_arriving(state), choice), chunk)
        choices.append(choice)
        needed.append(plan)
        run_in.append(ran)
        owners.append(state.owner if group == last else state.tokens.owner)
        arrived = plan
    return Served(state.logits, Structure(tuple(choices)), tuple(owners), tuple(needed), tuple(run_in))


class _Finished(NamedTuple):
    logits: jax.Array
    owner: jax.Array


def _arriving(state: Midway) -> Midway:
    """What a group reads of the state before it, per image: not what was for the decision, and not the static sizes of
    group 0."""
    per_image = {
        name: None if isinstance(size, int) else size
        for name, size in (("width", state.width), ("hidden", state.hidden))
    }
    return state._replace(signals=None, glance=None, **per_image)


def _branches(plans: Plans, model: ViT, params: Tree, group: int) -> list[list[Callable]]:
    """[plan of the group][plan that its images come from]: functions of a chunk, with equal shapes out."""
    own, last = plans.groups[group - 1], group == len(plans.groups)
    if group == 1:
        static = {"width": plans.first.widths[-1], "hidden": plans.first.hidden[-1]}
        restore = [lambda state: state._replace(**static)]
    else:
        restore = [functools.partial(_shrink, source=source) for source in plans.groups[group - 2]]

    def branch(plan: Plan, source: Callable) -> Callable:
        def run(part):
            state, choice = part
            out = advance(model, params, source(state), plan.bound(choice), group)
            if last:
                return _Finished(finish(model, params, out), out.tokens.owner)
            return _pad(out, own[-1])

        return run

    return [[branch(plan, source) for source in restore] for plan in own]


def _shrink(state: Midway, source: Plan) -> Midway:
    """Cuts a padded state to what images of a plan can hold."""
    width, hidden = source.widths[-1], source.hidden[-1]
    tokens = resized(state.tokens, source.tokens[-1])
    tokens = tokens._replace(features=tokens.features[:, :, :width])
    return state._replace(
        tokens=tokens, width=Within(state.width, width), hidden=Within(state.hidden, hidden)
    )


def _pad(state: Midway, plan: Plan) -> Midway:
    """Gives every branch of a group the shapes of its largest plan."""
    more = plan.tokens[-1] - state.tokens.features.shape[1]
    channels = plan.widths[-1] - state.tokens.features.shape[2]
    tokens = resized(state.tokens, plan.tokens[-1])
    tokens = tokens._replace(features=jnp.pad(tokens.features, ((0, 0), (0, 0), (0, channels))))
    pad = lambda x: jnp.pad(x, ((0, 0), (0, more), *[(0, 0)] * (x.ndim - 2)))
    signals = jax.tree.map(pad, state.signals)
    return Midway(tokens, signals, number(state.width), number(state.hidden), state.glance)


def in_chunks(
    branches: list[list[Callable | None]], plan: jax.Array, source: jax.Array, parts: Tree, chunk: int
) -> tuple[Tree, jax.Array]:
    """Runs every image of a batch in a branch that holds its plan and the one it comes from.

    branches: [plan][source], None where no image can come from there. plan, source: int32 [B]; parts: leaves [B, ...].
    Returns the results in input order, and the plan that each ran in.
    """
    batch, sources = plan.shape[0], len(branches[0])
    flat = [branch for row in branches for branch in row]
    there = [branch for branch in flat if branch is not None]
    place = jnp.asarray(np.cumsum([branch is not None for branch in flat]) - 1)

    def run(plan, source, part):
        top = plan.max()
        return jax.lax.switch(place[top * sources + source.max()], there, part), jnp.full(plan.shape, top)

    chunks = -(-batch // chunk)
    if chunks == 1:
        return run(plan, source, parts)
    size = -(-batch // chunks)
    order = jnp.argsort(plan * sources + source)
    # What is missing to whole chunks is filled with the cheapest image, in front, where it costs least.
    missing = chunks * size - batch
    padded = jnp.concatenate([jnp.broadcast_to(order[:1], (missing,)), order])
    cut = lambda x: x[padded].reshape(chunks, size, *x.shape[1:])
    results = jax.lax.map(lambda xs: run(*xs), jax.tree.map(cut, (plan, source, parts)))
    back = missing + jnp.argsort(order)
    return jax.tree.map(lambda x: x.reshape(chunks * size, *x.shape[2:])[back], results)
