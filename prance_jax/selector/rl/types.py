"""Configuration, state and data of PPO."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Callable, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from prance_jax.core.errors import UserError

Tree = Any
Metrics = dict[str, jax.Array]


@dataclass(frozen=True)
class PPOConfig:
    """The paper's settings, but for `minibatches`, which it does not tell.

    epochs, minibatches: passes over the buffer of an update, and parts of it that each step sees.
    std_start, std_end: of the Gaussian policy, linear over all updates. lr_decay: learning rates fall linearly to zero.
    normalise_observation: running mean and variance; off for official selectors.
    """

    gamma: float = 0.9
    lam: float = 0.9
    clip: float = 0.2
    epochs: int = 10
    minibatches: int = 4
    actor_lr: float = 1e-4
    critic_lr: float = 5e-3
    adam_eps: float = 1e-5
    entropy: float = 0.01
    max_grad_norm: float = 0.5
    normalise_advantage: bool = True
    normalise_observation: bool = True
    std_start: float = 0.3
    std_end: float = 0.05
    lr_decay: bool = True

    def __post_init__(self):
        if min(self.epochs, self.minibatches) < 1:
            raise UserError(f"ppo: epochs={self.epochs} and minibatches={self.minibatches} must be 1 or more")


class Environment(Protocol):
    """A batched process of `horizon` decisions that ends by termination.

    reset(context, key) -> (state, observation [B, D]); step(context, t, state, action) -> (state, observation [B, D],
    reward [B], info: dict of [B] arrays), t a Python int. `context` is any pytree, fixed within an update.
    """

    horizon: int
    reset: Callable
    step: Callable


class RunningStatistics(NamedTuple):
    """Running statistics of observations: number seen, mean and variance, [D] (Chan et al. 1983, pairwise merge)."""

    count: jax.Array
    mean: jax.Array
    variance: jax.Array

    def __call__(self, observation: jax.Array) -> jax.Array:
        deviation = jnp.sqrt(jnp.maximum(self.variance, 1e-6))
        return jnp.clip((observation - self.mean) / deviation, -10.0, 10.0)

    def update(self, observations: jax.Array) -> RunningStatistics:
        """Statistics after [..., D] more observations."""
        flat = observations.reshape(-1, observations.shape[-1])
        count = self.count + flat.shape[0]
        weight = flat.shape[0] / count
        # Not from mean squares: their difference loses float32's digits where the mean is large.
        apart = flat.mean(0) - self.mean
        variance = self.variance + weight * (flat.var(0) - self.variance) + weight * (1 - weight) * apart**2
        return RunningStatistics(count, self.mean + weight * apart, variance)


class PolicyParams(NamedTuple):
    """What acting needs."""

    actor: Tree
    normaliser: RunningStatistics


class PPOState(NamedTuple):
    """policy, critic parameters, the two optimizer states, updates done (int32)."""

    policy: PolicyParams
    critic: Tree
    actor_optimizer: Tree
    critic_optimizer: Tree
    updates: jax.Array


class Rollout(NamedTuple):
    """One buffer, time-major [T, B, ...]; log_prob is that which the action was drawn with."""

    observation: jax.Array
    action: jax.Array
    log_prob: jax.Array
    value: jax.Array
    reward: jax.Array
