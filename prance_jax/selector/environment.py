"""The Markov decision process of PRANCE (section 3.3): one image, three decisions, a classification after each.

The state of inference before a decision does not depend on later ones, so it is kept: an episode over four groups
takes 1 + 3 + 2 + 1 = 7 group evaluations, not 4 x 4. What the full network says of an image is known before.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Callable, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from prance_jax.core.sharding import constrain_batch
from prance_jax.models.forward import forward_first_group, forward_group, forward_rest
from prance_jax.models.vit import GroupState, ViT
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
from prance_jax.spec.macs import macs, token_counts
from prance_jax.spec.structure import GroupChoice, Structure


class EnvParams(NamedTuple):
    """What an update of the selector holds fixed.

    params: of the meta-network, frozen. images [P, S, S, C], labels [P], full_logits [P, num_classes]: the pool that
    episodes draw from; for pixels labels [P, S, S] and full_logits [P, S, S, num_classes]. price: of compute; a
    scalar, or the (lowest, highest) that episodes draw theirs from, see `selector.price`.
    """

    params: Any
    images: jax.Array
    labels: jax.Array
    full_logits: jax.Array
    cost_weight: jax.Array | tuple[jax.Array, jax.Array]


class EnvState(NamedTuple):
    """B episodes between two decisions. worth: [B], of the structure finished after the decision before; price: [B]."""

    state: GroupState
    chosen: tuple[GroupChoice, ...]
    labels: jax.Array
    full_logits: jax.Array
    utility: jax.Array
    cost_weight: jax.Array


@dataclass(frozen=True)
class PranceEnv:
    """`reset` and `step` are pure; `horizon` decisions end an episode, always by termination.

    first: choice of group 0, which the selector does not decide. batch: images per update. decision_cost: MACs of one
    decision. cost: what a structure costs as a share of the dense network, float32 [B] of per-image structures; its MACs
    by default. mesh: devices over which the episodes are divided. Hashable.
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
        return self.model.spec.space.groups - 1

    def reset(self, env_params: EnvParams, key: jax.Array) -> tuple[EnvState, jax.Array]:
        """Draws images from the pool and runs group 0. Returns the episodes and the first observation [B, D]."""
        drawn = jax.random.randint(key, (self.batch,), 0, env_params.labels.shape[0])
        images = constrain_batch(self.mesh, env_params.images[drawn])
        state = forward_first_group(self.model, env_params.params, images, self.first_choice)
        env_state = EnvState(
            state=state,
            chosen=(self.first_choice,),
            labels=env_params.labels[drawn],
            full_logits=env_params.full_logits[drawn],
            utility=jnp.zeros(self.batch),
            cost_weight=self._prices(env_params, jax.random.fold_in(key, 1)),
        )
        return env_state, self.encoder(state, 1, env_state.cost_weight)

    def step(self, env_params: EnvParams, t: int, env_state: EnvState, action: jax.Array):
        """Takes decision t (0, 1, ...): returns (episode, observation [B, D], reward [B], info of [B] arrays).

        Result-to-Go: the groups still undecided run at the largest structure with all tokens, and that finished
        classification gives the reward. The observation after the last decision is zero: nothing follows it.
        """
        spec, group = self.model.spec, t + 1
        choice = self.actions.decode(action, group)
        chosen = (*env_state.chosen, choice)
        state = forward_group(self.model, env_params.params, env_state.state, choice, group)
        rest = spec.largest.groups[group + 1 :]
        logits = forward_rest(self.model, env_params.params, state, rest, group + 1)

        structure = Structure(chosen + rest)
        share = macs(spec, structure, self.decision_cost).total / float(macs(spec, spec.largest).total)
        cost = share if self.cost is None else self.cost(structure)
        good = prediction_quality(self.config, logits, env_state.labels, env_state.full_logits)
        info = {
            "correct": mean_per_image((jnp.argmax(logits, -1) == env_state.labels).astype(jnp.float32)),
            "macs_kept": share,
            "cost": cost,
            "tokens_left": token_counts(spec, structure).mlp[-1] / spec.tokens,
        }
        observation = (
            self.encoder(state, group + 1, env_state.cost_weight)
            if group < self.horizon
            else jnp.zeros((self.batch, self.encoder.size))
        )
        now = utility(good, cost, env_state.cost_weight)
        gained = compute_reward(self.config, now, env_state.utility, choice.keep)
        if self.encoder.sees_cost_weight:
            gained = gained * reward_scale(env_state.cost_weight)
        return env_state._replace(state=state, chosen=chosen, utility=now), observation, gained, info

    def _prices(self, env_params: EnvParams, key: jax.Array) -> jax.Array:
        if not isinstance(env_params.cost_weight, tuple):
            return jnp.broadcast_to(env_params.cost_weight, (self.batch,))
        return sample_cost_weights(key, env_params.cost_weight, self.batch)
