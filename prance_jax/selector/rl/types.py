"""Settings, state and data of PPO, and the interface of an environment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from prance_jax.core.errors import UserError
from prance_jax.core.fields import (
    Fraction,
    LearningRate,
    NumImages,
    Positive,
    Repeats,
    Share,
    Weight,
    check_fields,
)
from prance_jax.selector.rl.weighted import weighted_mean, weighted_variance

Tree = Any
Metrics = dict[str, jax.Array]


@dataclass(frozen=True)
class PPOConfig:
    """Settings of PPO; defaults are PRANCE's, except `minibatches`, which the paper does not give.

    Attributes:
      gamma: discount.
      lam: lambda of generalised advantage estimation.
      clip: epsilon of the clipped surrogate.
      epochs: passes over the buffer of an update.
      minibatches: equal parts of the buffer; one gradient step each.
      actor_lr: learning rate of the actor.
      critic_lr: learning rate of the critic.
      adam_eps: epsilon of Adam.
      entropy: weight of the entropy bonus.
      max_grad_norm: global norm to which gradients are clipped.
      normalise_advantage: advantages have mean 0 and deviation 1 in each minibatch.
      normalise_observation: by running mean and variance; off for released selectors.
      std_start: standard deviation of the Gaussian policy at the first update.
      std_end: the same at the last; linear in between.
      lr_decay: learning rates fall linearly to zero.
    """

    gamma: Fraction = 0.9
    lam: Fraction = 0.9
    clip: Share = 0.2
    epochs: Repeats = 10
    minibatches: NumImages = 4
    actor_lr: LearningRate = 1e-4
    critic_lr: LearningRate = 5e-3
    adam_eps: Share = 1e-5
    entropy: Weight = 0.01
    max_grad_norm: Positive = 0.5
    normalise_advantage: bool = True
    normalise_observation: bool = True
    std_start: Positive = 0.3
    std_end: Positive = 0.05
    lr_decay: bool = True

    def __post_init__(self):
        check_fields(self, "ppo")

    def check_minibatches(self, decisions: int) -> None:
        """Checks that the decisions of an update divide into equal minibatches.

        Args:
          decisions: number of decisions in the buffer.

        Raises:
          UserError: they do not.
        """
        if decisions % self.minibatches:
            raise UserError(
                f"ppo: {decisions} decisions an update do not divide into {self.minibatches} equal minibatches"
            )


class Environment(Protocol):
    """A batched environment with the interface of gymnax and episodes of at most `horizon` steps.

    An episode terminates at its first `done`, or after `horizon` steps. `step` is called `horizon`
    times all the same. After the end of an episode its rewards and observations do not count, but must
    be finite.

    Attributes:
      horizon: largest number of steps per episode, T.
    """

    horizon: int

    def reset(self, key: jax.Array, env_params: Tree) -> tuple[jax.Array, Any]:
        """Starts B episodes.

        Args:
          key: random key.
          env_params: any pytree, fixed within an update.

        Returns:
          Observation float32 [B, D], and the state.
        """

    def step(
        self, key: jax.Array, env_state: Any, action: jax.Array, env_params: Tree
    ) -> tuple[jax.Array, Any, jax.Array, jax.Array, dict[str, jax.Array]]:
        """Takes one step of B episodes.

        Args:
          key: random key.
          env_state: state before the step; its structure may change from step to step.
          action: [B, components].
          env_params: as in `reset`.

        Returns:
          Observation float32 [B, D], state, reward float32 [B], done bool [B], info of [B] arrays.
        """


class MaskedEnvironment(Environment, Protocol):
    """An environment in which not every action is available in every state; for discrete policies."""

    def action_mask(self, env_state: Any, env_params: Tree) -> jax.Array:
        """Returns the available actions.

        Args:
          env_state: state before the step.
          env_params: as in `reset`.

        Returns:
          True where available, bool [B, outputs of the distribution]. Every component of an action
          needs at least one available choice until the episode ends.
        """


class RunningStatistics(NamedTuple):
    """Running mean and variance of observations (Chan et al. 1983, pairwise merge).

    Attributes:
      count: observations so far, float32 scalar.
      mean: float32 [D].
      variance: float32 [D].
    """

    count: jax.Array
    mean: jax.Array
    variance: jax.Array

    def __call__(self, observation: jax.Array) -> jax.Array:
        """Normalises observations [..., D] and clips them to [-10, 10]."""
        deviation = jnp.sqrt(jnp.maximum(self.variance, 1e-6))
        return jnp.clip((observation - self.mean) / deviation, -10.0, 10.0)

    def update(self, observations: jax.Array, weight: jax.Array) -> RunningStatistics:
        """Returns the statistics after more observations.

        Args:
          observations: float32 [..., D].
          weight: float32 [...], 1 for observations that count, 0 for others.
        """
        flat, weight = observations.reshape(-1, observations.shape[-1]), weight.reshape(-1, 1)
        count = self.count + weight.sum()
        share = weight.sum() / jnp.maximum(count, 1e-8)
        delta = weighted_mean(flat, weight, 0) - self.mean
        variance = weighted_variance(flat, weight, 0)
        variance = self.variance + share * (variance - self.variance) + share * (1 - share) * delta**2
        return RunningStatistics(count, self.mean + share * delta, variance)


class PolicyParams(NamedTuple):
    """Parameters of a policy: what acting needs.

    Attributes:
      actor: parameters of the actor.
      normaliser: statistics by which observations are normalised.
    """

    actor: Tree
    normaliser: RunningStatistics


class PPOState(NamedTuple):
    """State of training; its field names are checkpoint keys.

    Attributes:
      policy: parameters of the policy.
      critic: parameters of the critic.
      actor_optimizer: state of the actor's optimizer.
      critic_optimizer: state of the critic's optimizer.
      updates: updates so far, int32 scalar.
    """

    policy: PolicyParams
    critic: Tree
    actor_optimizer: Tree
    critic_optimizer: Tree
    updates: jax.Array


class Rollout(NamedTuple):
    """The buffer of one update, time-major.

    Attributes:
      observation: float32 [T, B, D].
      action: [T, B, components].
      log_prob: float32 [T, B], under the policy that sampled the action.
      value: float32 [T, B], by the critic, of the state in which the action was taken.
      reward: float32 [T, B], 0 after the end of an episode.
      weight: float32 [T, B], 1 where the decision was real, 0 after the end of an episode.
      mask: bool [T, B, outputs], available actions; None if the environment has no masks.
    """

    observation: jax.Array
    action: jax.Array
    log_prob: jax.Array
    value: jax.Array
    reward: jax.Array
    weight: jax.Array
    mask: jax.Array | None = None
