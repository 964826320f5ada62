"""Proximal policy optimisation (Schulman et al. 2017, arXiv 1707.06347) in pure JAX.

One update (rollout, advantages, epochs of minibatches) is one pure function: jit it, scan over it,
vmap it over seeds. The rollout is unrolled, because the few steps of an episode differ in kind:
each runs other layers of the network.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import optax

from prance_jax.core.errors import UserError
from prance_jax.selector.rl.advantage import gae
from prance_jax.selector.rl.distributions import Distribution
from prance_jax.selector.rl.losses import policy_loss, value_loss
from prance_jax.selector.rl.networks import Actor, Critic
from prance_jax.selector.rl.types import (
    Environment,
    Metrics,
    PolicyParams,
    PPOConfig,
    PPOState,
    Rollout,
    RunningStatistics,
    Tree,
)


@dataclass(frozen=True)
class PPO:
    """PPO for one family of policies; hashable, so it can be static under `jit`.

    Attributes:
      config: settings.
      distribution: family of the policy.
      observation_size: length D of an observation.
      hidden: units of each hidden layer of actor and critic.
      updates: updates in all, for the schedules.
    """

    config: PPOConfig
    distribution: Distribution
    observation_size: int
    hidden: tuple[int, ...]
    updates: int

    @property
    def actor(self) -> Actor:
        """The network of the policy."""
        return Actor(self.distribution.outputs, self.hidden)

    @property
    def critic(self) -> Critic:
        """The network of the value."""
        return Critic(self.hidden)

    def init(self, key: jax.Array) -> PPOState:
        """Returns a fresh state; observations are not normalised before the first update."""
        actor_key, critic_key = jax.random.split(key)
        blank = jnp.zeros((1, self.observation_size))
        actor, critic = (
            self.actor.init(actor_key, blank)["params"],
            self.critic.init(critic_key, blank)["params"],
        )
        normaliser = RunningStatistics(
            jnp.float32(0), jnp.zeros(self.observation_size), jnp.ones(self.observation_size)
        )
        optimizers = self._optimizers()
        states = optimizers[0].init(actor), optimizers[1].init(critic)
        return PPOState(PolicyParams(actor, normaliser), critic, *states, jnp.int32(0))

    def act(self, policy_params: PolicyParams, observation: jax.Array) -> jax.Array:
        """Returns the mode of the policy, for evaluation.

        Args:
          policy_params: parameters of the policy.
          observation: float32 [B, D].

        Returns:
          Action [B, components].
        """
        output = self._output(policy_params.actor, policy_params.normaliser, observation)
        return self.distribution.mode(output)

    def std(self, updates: jax.Array) -> jax.Array:
        """Returns the standard deviation of the Gaussian policy after a number of updates."""
        share = jnp.clip(updates / max(self.updates, 1), 0.0, 1.0)
        return self.config.std_start + share * (self.config.std_end - self.config.std_start)

    def rollout(
        self, state: PPOState, env: Environment, env_params: Tree, key: jax.Array
    ) -> tuple[Rollout, dict]:
        """Plays one batch of episodes.

        Args:
          state: state of training.
          env: the environment; static.
          env_params: passed to the environment.
          key: random key.

        Returns:
          The buffer, and the environment's info, [T, B] each.
        """
        keys = jax.random.split(key, env.horizon + 1)
        observation, env_state = env.reset(keys[0], env_params)
        std, steps, infos = self.std(state.updates), [], []
        for t in range(env.horizon):
            sample_key = keys[t + 1]
            output = self._output(state.policy.actor, state.policy.normaliser, observation)
            action, log_prob = self.distribution.sample(output, sample_key, std)
            value = self._value(state.critic, state.policy.normaliser, observation)
            step_key = jax.random.fold_in(sample_key, 0)
            # `done` is not read: all episodes end together, after the last step.
            next_observation, env_state, reward, _, info = env.step(step_key, env_state, action, env_params)
            steps.append(Rollout(observation, action, log_prob, value, reward))
            infos.append(info)
            observation = next_observation
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *steps), jax.tree.map(
            lambda *leaves: jnp.stack(leaves), *infos
        )

    def update(
        self, state: PPOState, env: Environment, env_params: Tree, key: jax.Array
    ) -> tuple[PPOState, Metrics, dict]:
        """Plays a fresh buffer and learns from it.

        Args:
          state: state of training.
          env: the environment; static.
          env_params: passed to the environment.
          key: random key; the only source of randomness.

        Returns:
          The state, scalar metrics, and the environment's info, [T, B] each.

        Raises:
          UserError: the buffer does not divide into `minibatches`.
        """
        config = self.config
        rollout_key, epoch_key = jax.random.split(key)
        if config.normalise_observation:
            # The first statistics come from an extra rollout, else the first buffer would not be normalised.
            # `while_loop` skips it in later updates; under vmap `cond` would always run it.
            def warm_up(statistics):
                warm_key = jax.random.fold_in(rollout_key, statistics.count.astype(jnp.int32))
                return statistics.update(self.rollout(state, env, env_params, warm_key)[0].observation)

            is_empty = lambda statistics: statistics.count == 0
            normaliser = jax.lax.while_loop(is_empty, warm_up, state.policy.normaliser)
            state = state._replace(policy=state.policy._replace(normaliser=normaliser))
        buffer, info = self.rollout(state, env, env_params, rollout_key)
        advantages = gae(buffer.reward, buffer.value, config.gamma, config.lam)
        targets = advantages + buffer.value
        flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), (buffer, advantages, targets))
        state, losses = self._learn(state, *flat, epoch_key)
        if config.normalise_observation:
            policy_params = state.policy._replace(
                normaliser=state.policy.normaliser.update(buffer.observation)
            )
            state = state._replace(policy=policy_params)
        target_variance = jnp.var(targets)
        metrics = {
            "reward": buffer.reward.mean(),
            "return": buffer.reward.sum(0).mean(),
            "explained_variance": 1 - jnp.var(targets - buffer.value) / jnp.maximum(target_variance, 1e-8),
            **losses,
        }
        return state._replace(updates=state.updates + 1), metrics, info

    def _learn(
        self, state: PPOState, buffer: Rollout, advantages: jax.Array, targets: jax.Array, key: jax.Array
    ):
        """Takes `epochs` x `minibatches` gradient steps on a flat buffer, [T x B, ...]."""
        config, std, normaliser = self.config, self.std(state.updates), state.policy.normaliser
        actor_optimizer, critic_optimizer = self._optimizers()
        total = advantages.shape[0]
        if total % config.minibatches:
            raise UserError(
                f"ppo: {total} decisions an update do not divide into {config.minibatches} equal minibatches"
            )

        def minibatch(carry, index):
            actor, critic, actor_state, critic_state = carry
            rows, advantage, target = jax.tree.map(lambda x: x[index], (buffer, advantages, targets))
            if config.normalise_advantage:
                advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)

            def policy_objective(params):
                output = self._output(params, normaliser, rows.observation)
                log_prob = self.distribution.log_prob(output, rows.action, std)
                entropy = self.distribution.entropy(output, std).mean()
                loss, metrics = policy_loss(log_prob, rows.log_prob, advantage, config.clip)
                return loss - config.entropy * entropy, {"policy_loss": loss, "entropy": entropy, **metrics}

            def value_objective(params):
                return value_loss(self._value(params, normaliser, rows.observation), target)

            actor_gradient, metrics = jax.grad(policy_objective, has_aux=True)(actor)
            loss, critic_gradient = jax.value_and_grad(value_objective)(critic)
            actor_update, actor_state = actor_optimizer.update(actor_gradient, actor_state, actor)
            critic_update, critic_state = critic_optimizer.update(critic_gradient, critic_state, critic)
            carry = (
                optax.apply_updates(actor, actor_update),
                optax.apply_updates(critic, critic_update),
                actor_state,
                critic_state,
            )
            return carry, {"value_loss": loss, **metrics}

        def epoch(carry, key):
            order = jax.random.permutation(key, total).reshape(config.minibatches, -1)
            return jax.lax.scan(minibatch, carry, order)

        carry = state.policy.actor, state.critic, state.actor_optimizer, state.critic_optimizer
        carry, metrics = jax.lax.scan(epoch, carry, jax.random.split(key, config.epochs))
        actor, critic, actor_state, critic_state = carry
        state = state._replace(
            policy=state.policy._replace(actor=actor),
            critic=critic,
            actor_optimizer=actor_state,
            critic_optimizer=critic_state,
        )
        return state, jax.tree.map(jnp.mean, metrics)

    def train(
        self, state: PPOState, env: Environment, env_params: Tree, key: jax.Array, updates: int
    ) -> tuple[PPOState, Metrics]:
        """Trains for a number of updates, as one scan.

        Args:
          state: state of training.
          env: the environment; static.
          env_params: passed to the environment.
          key: random key; update i, counted from the start of training, uses fold_in(key, i).
          updates: number of updates.

        Returns:
          The state, and metrics [updates] each.
        """

        def body(state, _):
            state, metrics, _ = self.update(state, env, env_params, jax.random.fold_in(key, state.updates))
            return state, metrics

        return jax.lax.scan(body, state, None, updates)

    def _output(self, actor: Tree, normaliser: RunningStatistics, observation: jax.Array) -> jax.Array:
        return self.actor.apply({"params": actor}, self._normalise(normaliser, observation))

    def _value(self, critic: Tree, normaliser: RunningStatistics, observation: jax.Array) -> jax.Array:
        return self.critic.apply({"params": critic}, self._normalise(normaliser, observation))

    def _normalise(self, normaliser: RunningStatistics, observation: jax.Array) -> jax.Array:
        return normaliser(observation) if self.config.normalise_observation else observation

    def _optimizers(self) -> tuple[optax.GradientTransformation, optax.GradientTransformation]:
        """Optimizers of actor and critic."""
        config = self.config
        steps = self.updates * config.epochs * config.minibatches

        def build(rate):
            schedule = optax.linear_schedule(rate, 0.0, steps) if config.lr_decay else rate
            return optax.chain(
                optax.clip_by_global_norm(config.max_grad_norm), optax.adam(schedule, eps=config.adam_eps)
            )

        return build(config.actor_lr), build(config.critic_lr)
