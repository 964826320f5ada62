"""The speed of stage two: rollouts through the network against a plain loop, and rollouts on the table of a cascade."""

from __future__ import annotations

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prance_jax.benchmarks.cascade import two_look_cascade
from prance_jax.cascade.observation import NUM_FEATURES
from prance_jax.cascade.table import CascadeTable, TableEnv, TableParams, node_costs
from prance_jax.config.cascade import TableSelectorConfig
from prance_jax.models.forward import forward_first_group, forward_group, forward_rest
from prance_jax.selector.environment import EnvParams
from prance_jax.selector.rl.distributions import MultiCategorical
from prance_jax.selector.rl.ppo import PPO
from prance_jax.spec.cascade import Cascade
from prance_jax.spec.model_spec import ModelSpec
from prance_jax.training.stages.selector import Selector


def measure_rollout(
    selector: Selector, env_params: EnvParams, key: jax.Array, repeats: int = 5
) -> dict[str, Any]:
    """Measures decisions per second of the jitted rollout and of a plain loop.

    The plain loop is how an environment of one image is usually written: for every image and every
    decision the network runs from the image on, group by group, under the decisions so far, and
    then to its end. Its functions are compiled. Only the groups before a decision are not kept, and
    images are not batched.

    Args:
      selector: of stage two.
      env_params: network and images of the environment.
      key: random key of the policy.
      repeats: interleaved repeats, of which medians are taken.

    Returns:
      Decisions per second of both, their ratio, the batch of the rollout, lowest and highest rates.
    """
    ppo, env = selector.ppo, selector.env
    state = ppo.init(key)
    rollout = jax.jit(lambda state, env_params, key: ppo.rollout(state, env, env_params, key)[0])
    decisions = env.horizon * env.batch
    loop_images = 4
    loop = _Loop(selector, env_params)
    rates: dict[str, list[float]] = {"rollout": [], "loop": []}
    jax.block_until_ready(rollout(state, env_params, key))
    loop.play(state, range(1), key)
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(rollout(state, env_params, key))
        rates["rollout"].append(decisions / (time.perf_counter() - start))
        start = time.perf_counter()
        loop.play(state, range(loop_images), key)
        rates["loop"].append(env.horizon * loop_images / (time.perf_counter() - start))
    medians = {name: float(np.median(values)) for name, values in rates.items()}
    return {
        "rollout_decisions_per_s": medians["rollout"],
        "loop_decisions_per_s": medians["loop"],
        "ratio": medians["rollout"] / medians["loop"],
        "batch": env.batch,
        "spread": {name: [min(values), max(values)] for name, values in rates.items()},
    }


def measure_table(
    ppo: PPO, env: TableEnv, env_params: TableParams, key: jax.Array, repeats: int = 5, updates: int = 10
) -> dict[str, Any]:
    """Measures decisions per second of PPO on the table of a cascade: of rollouts alone, and with learning.

    Only decisions of episodes that have not ended count.

    Args:
      ppo: the algorithm.
      env: table look-ups.
      env_params: the table.
      key: random key of the policy.
      repeats: interleaved repeats, of which medians are taken.
      updates: updates in a compiled call.

    Returns:
      Decisions per second of both, episodes per update, lowest and highest rates.
    """
    state = ppo.init(key)
    keys = jax.random.split(key, updates)

    # The whole buffers are returned, so that the compiler leaves nothing out.
    play = lambda state, env_params: jax.lax.map(
        lambda key: ppo.rollout(state, env, env_params, key)[0], keys
    )
    programs = {
        "rollout": jax.jit(play),
        "learning": jax.jit(lambda state, env_params: ppo.train(state, env, env_params, key, updates)),
    }
    decisions = float(programs["rollout"](state, env_params).weight.sum())
    jax.block_until_ready(programs["learning"](state, env_params))
    rates: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(repeats):
        for name, program in programs.items():
            start = time.perf_counter()
            jax.block_until_ready(program(state, env_params))
            rates[name].append(decisions / (time.perf_counter() - start))
    return {
        "rollout_decisions_per_s": float(np.median(rates["rollout"])),
        "learning_decisions_per_s": float(np.median(rates["learning"])),
        "batch": env.batch,
        "spread": {name: [min(values), max(values)] for name, values in rates.items()},
    }


def measure_random_table(spec: ModelSpec, settings: TableSelectorConfig, repeats: int = 5) -> dict[str, Any]:
    """Measures PPO on a table of random answers of `two_look_cascade`, see `measure_table`.

    Args:
      spec: the network.
      settings: sizes of the table and of PPO.
      repeats: interleaved repeats, of which medians are taken.
    """
    cascade, key = two_look_cascade(spec), jax.random.key(0)
    env = TableEnv(cascade, settings.batch)
    actions = MultiCategorical((cascade.num_actions,))
    ppo = PPO(settings.ppo, actions, env.observation_size, settings.hidden, settings.updates)
    table = random_table(cascade, settings.pool, key)
    env_params = TableParams(table, tuple(map(jnp.float32, settings.cost_weights)))
    return measure_table(ppo, env, env_params, key, repeats)


def random_table(cascade: Cascade, images: int, key: jax.Array) -> CascadeTable:
    """Makes a table of random answers, for measuring speed.

    Args:
      cascade: the tree.
      images: number of images.
      key: random key.
    """
    keys, shape = jax.random.split(key, 3), (images, cascade.num_nodes)
    labels = jax.random.randint(keys[0], (images,), 0, cascade.spec.last.num_classes, dtype=jnp.int32)
    predicted = jax.random.randint(keys[1], shape, 0, cascade.spec.last.num_classes, dtype=jnp.int32)
    features = jax.random.uniform(keys[2], (*shape, NUM_FEATURES), dtype=jnp.float32)
    quality = (predicted == labels[:, None]).astype(jnp.float32)
    return CascadeTable(features, predicted, quality, labels, jnp.asarray(node_costs(cascade), jnp.float32))


class _Loop:
    """The plain loop: one image at a time, the whole network anew for each decision."""

    def __init__(self, selector: Selector, env_params: EnvParams):
        self.selector, self.env_params = selector, env_params
        model, spec = selector.env.model, selector.spec
        self.forward_first_group = jax.jit(
            lambda params, image: forward_first_group(model, params, image, selector.first_choice)
        )
        self.forward_group = [
            jax.jit(
                lambda params, state, choice, group=group: forward_group(model, params, state, choice, group)
            )
            for group in range(1, spec.space.groups)
        ]
        self.forward_rest = [
            jax.jit(
                lambda params, state, later=spec.largest.groups[group:], group=group: forward_rest(
                    model, params, state, later, group
                )
            )
            for group in range(2, spec.space.groups + 1)
        ]
        ppo, encoder = selector.ppo, selector.encoder
        self.decide = [
            jax.jit(
                lambda policy, state, key, group=group: selector.actions.decode(
                    ppo.distribution.sample(
                        ppo.actor.apply({"params": policy.actor}, encoder(state, group)),
                        key,
                        jnp.float32(0.3),
                    )[0],
                    group,
                )
            )
            for group in range(1, spec.space.groups)
        ]

    def play(self, ppo_state, images, key) -> None:
        for image in images:
            pixels = self.env_params.images[image : image + 1]
            choices = []
            for decision in range(self.selector.env.horizon):
                state = self.forward_first_group(self.env_params.params, pixels)
                for group, choice in enumerate(choices):
                    state = self.forward_group[group](self.env_params.params, state, choice)
                choices.append(
                    self.decide[decision](ppo_state.policy, state, jax.random.fold_in(key, decision))
                )
                state = self.forward_group[decision](self.env_params.params, state, choices[-1])
                jax.block_until_ready(self.forward_rest[decision](self.env_params.params, state))
