"""Stage two: the selector is trained by PPO while the meta-network is frozen.

Reference: PRANCE, arXiv 2407.05010, section 3.4.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from prance_jax.adaptive.bucket_latency import LatencyTable
from prance_jax.config.stages import SelectorConfig
from prance_jax.core.sharding import fetch_local, jit_step, replicate
from prance_jax.data.prefetch import prefetch_to_device
from prance_jax.data.source import Source
from prance_jax.models.vit import ViT
from prance_jax.selector.actions import ActionSpace
from prance_jax.selector.environment import EnvParams, PranceEnv
from prance_jax.selector.observation import ObservationEncoder, mlp_macs
from prance_jax.selector.policies import SelectorPolicy
from prance_jax.selector.reward import update_cost_weight
from prance_jax.selector.rl.distributions import Gaussian, MultiCategorical
from prance_jax.selector.rl.ppo import PPO
from prance_jax.spec.model_spec import ModelSpec
from prance_jax.spec.structure import GroupChoice

Tree = Any


@dataclass(frozen=True)
class Selector:
    """A selector without its parameters.

    Attributes:
      spec: the network that it decides for.
      config: settings of stage two.
      first_choice: fixed structure of group 0.
      latency: latency of each structure, if that is the cost; None for MACs.
      mesh: devices of the rollouts; None for one device.
    """

    spec: ModelSpec
    config: SelectorConfig
    first_choice: GroupChoice
    latency: LatencyTable | None = None
    mesh: Mesh | None = None

    @property
    def finite_actions(self) -> ActionSpace:
        """Finite choices; also those of the baselines when the selector's own are continuous."""
        return ActionSpace(self.spec.space, self.spec.rates, (self.config.keep_choices,) * self.spec.rates)

    @property
    def actions(self) -> ActionSpace:
        """Actions of the selector."""
        if self.config.policy == "lattice":
            return self.finite_actions
        return ActionSpace(self.spec.space, self.spec.rates)

    @property
    def encoder(self) -> ObservationEncoder:
        """Encoder of its observations."""
        return ObservationEncoder(self.spec, self.config.state, self.config.cost_weights is not None)

    @property
    def ppo(self) -> PPO:
        """Its training algorithm, with actor and critic."""
        is_finite = self.config.policy == "lattice"
        distribution = MultiCategorical(self.actions.nvec) if is_finite else Gaussian(self.actions.components)
        return PPO(self.config.ppo, distribution, self.encoder.size, self.config.hidden, self.config.updates)

    @property
    def decision_cost(self) -> int:
        """MACs of one decision: the actor and, except for the paper's state, early logits.

        Early logits apply a classifier to each class token or to the mean of the patches; for pixels, the
        head to all tokens. They are counted at the largest width.
        """
        actor = mlp_macs(self.encoder.size, self.config.hidden, self.ppo.distribution.outputs)
        num_classified = (self.spec.tokens if self.spec.pixels else self.spec.read_tokens) * (
            self.config.state != "keys"
        )
        return actor + num_classified * self.spec.space.max_width * self.spec.num_classes

    @property
    def policy(self) -> SelectorPolicy:
        """Decision policy that takes the mode; its parameters are the `policy` of the PPO state."""
        return SelectorPolicy(self.first_choice, self.actions, self.encoder, self.ppo)

    @property
    def env(self) -> PranceEnv:
        """Environment of its episodes."""
        return PranceEnv(
            ViT(self.spec),
            self.actions,
            self.encoder,
            self.config.reward,
            self.first_choice,
            self.config.batch,
            self.decision_cost,
            None if self.latency is None else self.latency.share,
            self.mesh,
        )

    def init(self, key: jax.Array) -> Tree:
        """Returns the initial state: PPO's ('ppo') and the cost weight ('price')."""
        return {"ppo": self.ppo.init(key), "price": jnp.float32(self.config.reward.cost_weight)}


def draw_pool(
    selector: Selector, params: Tree, source: Source, key: jax.Array, batch: int = 256
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Draws the images of stage two from the training data; all hosts draw the same ones.

    Args:
      selector: the selector.
      params: parameters of the meta-network.
      source: data source.
      key: random key.
      batch: images per compiled call.

    Returns:
      Images [pool, S, S, channels] of the network's dtype, labels int32 [pool], logits of the largest
      structure [pool, num_classes].
    """
    draw, tables = (
        _pool_batch(selector.spec, source.sample_plain, batch),
        prefetch_to_device(source, batch, mesh=selector.mesh),
    )
    count = -(-selector.config.pool // batch)
    params, key = replicate(selector.mesh, (params, key))
    parts = [
        jax.device_get(fetch_local(draw(params, next(tables), jax.random.fold_in(key, index))))
        for index in range(count)
    ]
    return tuple(jnp.asarray(np.concatenate(column)[: selector.config.pool]) for column in zip(*parts))


@functools.lru_cache(maxsize=None)
def _pool_batch(spec: ModelSpec, sample: Callable, batch: int) -> Callable:
    model = ViT(spec)

    def draw(params, tables, key):
        images, labels = sample(tables, key, batch)
        # The network converts images to its dtype anyway; bfloat16 needs half the memory.
        return images.astype(spec.dtype), labels, model.apply({"params": params}, images, spec.largest)

    return jax.jit(draw)


@functools.lru_cache(maxsize=None)
def selector_step(selector: Selector) -> Callable:
    """Compiles one update of PPO.

    Args:
      selector: the selector.

    Returns:
      Compiled (state, update, key, params, images, labels, full_logits) -> (state, metrics). `params`
      are those of the meta-network; images, labels and logits come from `draw_pool`. The state is
      donated.
    """
    ppo, env, config = selector.ppo, selector.env, selector.config

    def step(state, index, key, params, images, labels, full_logits):
        cost_weight = (
            state["price"] if config.cost_weights is None else tuple(map(jnp.float32, config.cost_weights))
        )
        env_params = EnvParams(params, images, labels, full_logits, cost_weight)
        learned, metrics, info = ppo.update(state["ppo"], env, env_params, jax.random.fold_in(key, index))
        # Only after the last decision no choice has its default: serving runs that structure.
        final = {name: value[-1].mean() for name, value in info.items()}
        cost_weight = state["price"]
        if config.cost_weights is None:
            cost_weight = update_cost_weight(config.reward, cost_weight, final["cost"])
        return {"ppo": learned, "price": cost_weight}, {**final, **metrics, "price": state["price"]}

    return jit_step(step, selector.mesh)
