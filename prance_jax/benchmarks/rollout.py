"""How fast stage two plays: the jitted rollout against a plain loop that runs the network anew for each decision."""

from __future__ import annotations

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prance_jax.models.forward import advance, begin, complete
from prance_jax.selector.environment import Context
from prance_jax.training.stages.selector import Selector


def measure(selector: Selector, context: Context, key: jax.Array, repeats: int = 5) -> dict[str, Any]:
    """Image-decisions per second of both, interleaved, medians over `repeats`.

    The plain loop is how an environment of one image is usually written: for every image and every decision the
    network runs from the image on, group by group, under the decisions so far, and then to its end. Its functions are
    compiled (an uncompiled loop would be a straw man); only the prefix is not kept and images are not batched.
    """
    ppo, process = selector.ppo, selector.process
    state = ppo.init(key)
    rollout = jax.jit(lambda state, context, key: ppo.rollout(state, process, context, key)[0])
    decisions = process.horizon * process.batch
    few = 4
    loop = _Loop(selector, context)
    taken: dict[str, list[float]] = {"rollout": [], "loop": []}
    jax.block_until_ready(rollout(state, context, key))
    loop.play(state, range(1), key)
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(rollout(state, context, key))
        taken["rollout"].append(decisions / (time.perf_counter() - start))
        start = time.perf_counter()
        loop.play(state, range(few), key)
        taken["loop"].append(process.horizon * few / (time.perf_counter() - start))
    medians = {name: float(np.median(rates)) for name, rates in taken.items()}
    return {
        "rollout_decisions_per_s": medians["rollout"],
        "loop_decisions_per_s": medians["loop"],
        "ratio": medians["rollout"] / medians["loop"],
        "batch": process.batch,
        "spread": {name: [min(rates), max(rates)] for name, rates in taken.items()},
    }


class _Loop:
    """The plain loop: one image at a time, everything anew for each decision."""

    def __init__(self, selector: Selector, context: Context):
        self.selector, self.context = selector, context
        model, spec = selector.process.model, selector.spec
        self.begin = jax.jit(lambda params, image: begin(model, params, image, selector.first))
        self.advance = [
            jax.jit(lambda params, midway, choice, group=group: advance(model, params, midway, choice, group))
            for group in range(1, spec.space.groups)
        ]
        self.finish = [
            jax.jit(
                lambda params, midway, rest=spec.largest.groups[group:], group=group: complete(
                    model, params, midway, rest, group
                )
            )
            for group in range(2, spec.space.groups + 1)
        ]
        ppo, observer = selector.ppo, selector.observer
        self.decide = [
            jax.jit(
                lambda policy, midway, key, group=group: selector.actions.decode(
                    ppo.distribution.sample(
                        ppo.actor.apply({"params": policy.actor}, observer(midway, group)),
                        key,
                        jnp.float32(0.3),
                    )[0],
                    group,
                )
            )
            for group in range(1, spec.space.groups)
        ]

    def play(self, state, images, key) -> None:
        for image in images:
            pixels = self.context.images[image : image + 1]
            chosen = []
            for decision in range(self.selector.process.horizon):
                midway = self.begin(self.context.params, pixels)
                for group, choice in enumerate(chosen):
                    midway = self.advance[group](self.context.params, midway, choice)
                chosen.append(self.decide[decision](state.policy, midway, jax.random.fold_in(key, decision)))
                midway = self.advance[decision](self.context.params, midway, chosen[-1])
                jax.block_until_ready(self.finish[decision](self.context.params, midway))
