"""The Markov decision process of PRANCE (section 3.3), with the interface of gymnax.

An episode is one image. Before every group but the first an action chooses the group's structure
and keep rates. The reward comes from the classification that is finished after each decision
(Result-to-Go).

The state of inference before a decision does not depend on later ones, so it is kept in `EnvState`.
An episode over four groups takes 1 + 3 + 2 + 1 = 7 group evaluations, not 3 x 4 = 12. Logits of the full
network are computed beforehand.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Callable, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from prance_jax.core.losses import correct_predictions
from prance_jax.core.sharding import constrain_batch
from prance_jax.models.forward import forward_first_group, forward_group, forward_rest
from prance_jax.models.outputs import GroupState
from prance_jax.models.vit import ViT
from prance_jax.selector.actions import ActionSpace
from prance_jax.selector.cost_weight import reward_scale, sample_cost_weights
from prance_jax.selector.observation import ObservationEncoder
from prance_jax.selector.reward import (
    RewardConfig,
    compute_reward,
    mean_per_image,
    prediction_quality,
    utility,
)
from prance_jax.spec.macs import macs
from prance_jax.spec.structure import GroupChoice, Structure
from prance_jax.spec.token_counts import tokens_after_layers


class EnvParams(NamedTuple):
    """What stays fixed during an update of the selector.

    Attributes:
      params: parameters of the meta-network, frozen.
      images: [P, S, S, channels], the pool that episodes draw from.
      labels: int32 [P]; of a segmentation network [P, S, S].
      full_logits: float32 [P, num_classes], logits of the full network (largest structure, all
        tokens); of a segmentation network [P, S, S, num_classes].
      cost_weight: a scalar, or (lowest, highest) between which every episode samples its own.
    """

    params: Any
    images: jax.Array
    labels: jax.Array
    full_logits: jax.Array
    cost_weight: jax.Array | tuple[jax.Array, jax.Array]


class EnvState(NamedTuple):
    """B episodes between two decisions.

    Attributes:
      group_state: state of inference after the groups decided so far.
      choices: choice of group 0 and of every group decided so far.
      labels: int32 [B], or [B, S, S]; with several labels per image [B, num_classes].
      full_logits: float32 [B, num_classes], or [B, S, S, num_classes].
      utility: float32 [B], of the structure finished after the previous decision; 0 before the
        first.
      cost_weight: float32 [B].
    """

    group_state: GroupState
    choices: tuple[GroupChoice, ...]
    labels: jax.Array
    full_logits: jax.Array
    utility: jax.Array
    cost_weight: jax.Array


@dataclass(frozen=True)
class PranceEnv:
    """A batch of episodes; `reset` and `step` are pure functions.

    Every episode has `horizon` decisions and ends by termination. Hashable, so it can be static
    under `jit`.

    Attributes:
      model: the meta-network.
      actions: meaning of the actions.
      encoder: builds the observations.
      config: settings of the reward.
      first_choice: choice of group 0, which the selector does not decide.
      batch: B, images per update.
      decision_cost: MACs of one decision.
      cost: structure -> its cost as a share of the dense network, float32 [B]; None takes its share
        of dense MACs.
      mesh: devices over which episodes are divided; None for one device.
    """

    model: ViT
    actions: ActionSpace
    encoder: ObservationEncoder
    config: RewardConfig
    first_choice: GroupChoice
    batch: int
    decision_cost: int = 0
    cost: Callable[[Structure], jax.Array] | None = None
    mesh: Mesh | None = None

    @property
    def horizon(self) -> int:
        """Decisions per episode."""
        return self.model.spec.space.groups - 1

    def reset(self, key: jax.Array, env_params: EnvParams) -> tuple[jax.Array, EnvState]:
        """Draws images from the pool and runs group 0.

        Args:
          key: random key; draws images and, where sampled, cost weights.
          env_params: what stays fixed during the update.

        Returns:
          The first observation, float32 [B, D], and the state.
        """
        indices = jax.random.randint(key, (self.batch,), 0, env_params.labels.shape[0], dtype=jnp.int32)
        images = constrain_batch(self.mesh, env_params.images[indices])
        group_state = forward_first_group(self.model, env_params.params, images, self.first_choice)
        env_state = EnvState(
            group_state=group_state,
            choices=(self.first_choice,),
            labels=env_params.labels[indices],
            full_logits=env_params.full_logits[indices],
            utility=jnp.zeros(self.batch, jnp.float32),
            cost_weight=self._cost_weights(jax.random.fold_in(key, 1), env_params),
        )
        return self.encoder(group_state, 1, env_state.cost_weight), env_state

    def step(
        self, key: jax.Array, env_state: EnvState, action: jax.Array, env_params: EnvParams
    ) -> tuple[jax.Array, EnvState, jax.Array, jax.Array, dict[str, jax.Array]]:
        """Takes one decision and rewards the classification that is finished from there.

        Result-to-Go: the groups that are still undecided run at the largest structure with all
        tokens. The number of the decision, t = 1, ..., T, which is also the group that it decides,
        follows from the static structure of `env_state`.

        Args:
          key: not used, transitions are deterministic; part of the interface of gymnax.
          env_state: state before the decision.
          action: [B, components], see `ActionSpace.decode`.
          env_params: what stays fixed during the update.

        Returns:
          Observation float32 [B, D] (zero after the last decision), state, reward r_t float32 [B],
          done bool [B], and info: `correct`, `macs_kept`, `cost`, `tokens_left` of the finished
          structure, float32 [B] each.
        """
        spec, group = self.model.spec, len(env_state.choices)
        choice = self.actions.decode(action, group)
        choices = (*env_state.choices, choice)
        group_state = forward_group(self.model, env_params.params, env_state.group_state, choice, group)
        undecided = spec.largest.groups[group + 1 :]
        logits = forward_rest(self.model, env_params.params, group_state, undecided, group + 1)

        structure = Structure(choices + undecided)
        macs_share = macs(spec, structure, self.decision_cost).total / float(macs(spec, spec.largest).total)
        cost = macs_share if self.cost is None else self.cost(structure)
        quality = prediction_quality(self.config, logits, env_state.labels, env_state.full_logits)
        info = {
            "correct": mean_per_image(correct_predictions(logits, env_state.labels).astype(jnp.float32)),
            "macs_kept": macs_share,
            "cost": cost,
            "tokens_left": tokens_after_layers(spec, structure)[-1] / spec.tokens,
        }
        observation = (
            self.encoder(group_state, group + 1, env_state.cost_weight)
            if group < self.horizon
            else jnp.zeros((self.batch, self.encoder.size), jnp.float32)
        )
        utility_t = utility(quality, cost, env_state.cost_weight)
        reward = compute_reward(self.config, utility_t, env_state.utility, choice.keep)
        if self.encoder.sees_cost_weight:
            reward = reward * reward_scale(env_state.cost_weight)
        env_state = env_state._replace(group_state=group_state, choices=choices, utility=utility_t)
        return observation, env_state, reward, jnp.full(self.batch, group == self.horizon, bool), info

    def _cost_weights(self, key: jax.Array, env_params: EnvParams) -> jax.Array:
        """float32 [B]: the one cost weight, or one sampled per episode."""
        if not isinstance(env_params.cost_weight, tuple):
            return jnp.broadcast_to(env_params.cost_weight, (self.batch,))
        return sample_cost_weights(key, env_params.cost_weight, self.batch)
