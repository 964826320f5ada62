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

from prance_jax.selector.rl.actor_critic import ActorCritic
from prance_jax.selector.rl.advantage import gae
from prance_jax.selector.rl.losses import policy_loss, value_loss
from prance_jax.selector.rl.types import Environment, Metrics, PPOState, Rollout, Tree
from prance_jax.selector.rl.weighted import weighted_mean, weighted_variance


@dataclass(frozen=True)
class PPO(ActorCritic):
    """PPO for one family of policies; its attributes are those of `ActorCritic`.

    Decisions after the end of an episode have weight 0. They count in no loss, metric or statistic.
    """

    def rollout(
        self, state: PPOState, env: Environment, env_params: Tree, key: jax.Array
    ) -> tuple[Rollout, dict]:
        """Plays one batch of episodes; in a `MaskedEnvironment` only with available actions.

        Args:
          state: state of training.
          env: the environment; static.
          env_params: passed to the environment.
          key: random key.

        Returns:
          The buffer, and the environment's info, [T, B] each; info also has the steps after an
          episode's end, as the environment returns them.
        """
        keys = jax.random.split(key, env.horizon + 1)
        observation, env_state = env.reset(keys[0], env_params)
        weight = jnp.ones(observation.shape[0], jnp.float32)
        std, steps, infos = self.std(state.updates), [], []
        for t in range(env.horizon):
            sample_key = keys[t + 1]
            mask = env.action_mask(env_state, env_params) if hasattr(env, "action_mask") else None
            output = self._output(state.policy.actor, state.policy.normaliser, observation, mask)
            action, log_prob = self.distribution.sample(output, sample_key, std)
            value = self._value(state.critic, state.policy.normaliser, observation)
            step_key = jax.random.fold_in(sample_key, 0)
            next_observation, env_state, reward, done, info = env.step(
                step_key, env_state, action, env_params
            )
            steps.append(Rollout(observation, action, log_prob, value, reward * weight, weight, mask))
            infos.append(info)
            observation, weight = next_observation, jnp.where(done, 0.0, weight)
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
          The state, scalar metrics, and the environment's info, as of `rollout`. The metric `reward` is
          the mean per decision, `return` that of the undiscounted sum per episode.

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
                buffer, _ = self.rollout(state, env, env_params, warm_key)
                return statistics.update(buffer.observation, buffer.weight)

            is_empty = lambda statistics: statistics.count == 0
            normaliser = jax.lax.while_loop(is_empty, warm_up, state.policy.normaliser)
            state = state._replace(policy=state.policy._replace(normaliser=normaliser))
        buffer, info = self.rollout(state, env, env_params, rollout_key)
        advantages = gae(buffer.reward, buffer.value, buffer.weight, config.gamma, config.lam)
        targets = advantages + buffer.value
        flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), (buffer, advantages, targets))
        state, losses = self._learn(state, *flat, epoch_key)
        if config.normalise_observation:
            normaliser = state.policy.normaliser.update(buffer.observation, buffer.weight)
            state = state._replace(policy=state.policy._replace(normaliser=normaliser))
        target_variance = weighted_variance(targets, buffer.weight)
        error_variance = weighted_variance(targets - buffer.value, buffer.weight)
        metrics = {
            "reward": weighted_mean(buffer.reward, buffer.weight),
            "return": buffer.reward.sum(0).mean(),
            "explained_variance": 1 - error_variance / jnp.maximum(target_variance, 1e-8),
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
        config.check_minibatches(total)

        def minibatch(carry, index):
            actor, critic, actor_state, critic_state = carry
            rows, advantage, target = jax.tree.map(lambda x: x[index], (buffer, advantages, targets))
            if config.normalise_advantage:
                deviation = jnp.sqrt(weighted_variance(advantage, rows.weight))
                advantage = (advantage - weighted_mean(advantage, rows.weight)) / (deviation + 1e-8)

            def policy_objective(params):
                output = self._output(params, normaliser, rows.observation, rows.mask)
                log_prob = self.distribution.log_prob(output, rows.action, std)
                entropy = weighted_mean(self.distribution.entropy(output, std), rows.weight)
                loss, metrics = policy_loss(log_prob, rows.log_prob, advantage, rows.weight, config.clip)
                return loss - config.entropy * entropy, {"policy_loss": loss, "entropy": entropy, **metrics}

            def value_objective(params):
                return value_loss(self._value(params, normaliser, rows.observation), target, rows.weight)

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
            return carry, ({"value_loss": loss, **metrics}, rows.weight.sum())

        def epoch(carry, key):
            order = jax.random.permutation(key, jnp.arange(total, dtype=jnp.int32)).reshape(
                config.minibatches, -1
            )
            return jax.lax.scan(minibatch, carry, order)

        carry = state.policy.actor, state.critic, state.actor_optimizer, state.critic_optimizer
        carry, (metrics, weight) = jax.lax.scan(epoch, carry, jax.random.split(key, config.epochs))
        actor, critic, actor_state, critic_state = carry
        state = state._replace(
            policy=state.policy._replace(actor=actor),
            critic=critic,
            actor_optimizer=actor_state,
            critic_optimizer=critic_state,
        )
        # Minibatches differ in how many of their decisions are real.
        return state, jax.tree.map(lambda values: weighted_mean(values, weight), metrics)

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
