"""Times every plan of every group on the device at hand: the table behind latency-aware rewards and budgets."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prance_jax.adaptive.bucket_latency import LatencyTable
from prance_jax.adaptive.buckets import Plan, Plans
from prance_jax.core.timing import interleaved
from prance_jax.models.forward import advance, begin, finish
from prance_jax.models.vit import Midway, ViT
from prance_jax.spec.structure import GroupChoice
from prance_jax.tokens.token_set import initial_tokens, rate_for


def measure(plans: Plans, params: Any, device: str, batch: int = 16, repeats: int = 9) -> LatencyTable:
    """Milliseconds per image of each group under each plan, for images that come from each plan of the group before.

    Groups run compact at the plan's sizes on `batch` random images; medians over interleaved repeats. device: how the
    table names the machine.
    """
    spec, model = plans.spec, ViT(plans.spec)
    images = jnp.ones((batch, spec.image_size, spec.image_size, spec.channels))
    programs = {
        "dense": jax.jit(lambda p: model.apply({"params": p}, images, spec.largest)),
        "first": jax.jit(lambda p: begin(model, p, images, plans.first).tokens.features),
    }
    before = [(plans.first.widths[-1], plans.first.hidden[-1], spec.tokens)]
    last = len(plans.groups)
    for group, own in enumerate(plans.groups, start=1):
        for index, plan in enumerate(own):
            for source, (width, hidden, tokens) in enumerate(before):
                state = _state(batch, width, hidden, tokens, spec)
                choice = _choice(plan, tokens)

                def run(p, state=state, choice=choice, group=group):
                    out = advance(model, p, state, choice, group)
                    return finish(model, p, out) if group == last else out.tokens.features

                programs[group, index, source] = jax.jit(run)
        before = [(plan.widths[-1], plan.hidden[-1], plan.tokens[-1]) for plan in own]
    calls = {name: lambda run=run: run(params) for name, run in programs.items()}
    times = {
        name: 1e3 * float(np.median(taken)) / batch for name, taken in interleaved(calls, repeats).items()
    }
    groups, sources = [], 1
    for group, own in enumerate(plans.groups, start=1):
        groups.append(
            tuple(
                tuple(times[group, index, source] for source in range(sources)) for index in range(len(own))
            )
        )
        sources = len(own)
    return LatencyTable(plans, times["first"], tuple(groups), times["dense"], device)


def _state(batch: int, width: int, hidden: int, tokens: int, spec) -> Midway:
    features = jnp.ones((batch, tokens, width), spec.dtype)
    held = initial_tokens(features)._replace(owner=jnp.ones((batch, spec.patches), jnp.int32))
    if spec.method.sized:
        held = held._replace(size=jnp.ones((batch, tokens)))
    return Midway(held, None, width, hidden, None)


def _choice(plan: Plan, arriving: int) -> GroupChoice:
    """The plan's sizes as a static choice for images that arrive with so many tokens."""
    rates = []
    for left in plan.tokens:
        left = min(left, arriving)
        rates.append(rate_for(left, arriving))
        arriving = left
    return GroupChoice(plan.widths, plan.hidden, tuple(rates))
