"""Proximal policy optimisation (Schulman et al. 2017, arXiv 1707.06347) in pure JAX.

One update (rollout, advantages, epochs of minibatches) is one pure function; jit it, scan over it, vmap it over seeds.
The process has few decisions that differ in kind (each runs other layers), so its horizon is unrolled.
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
    """The algorithm for one kind of policy. updates: how many there will be, for the schedules."""

    config: PPOConfig
    distribution: Distribution
    observation_size: int
    hidden: tuple[int, ...]
    updates: int

    @property
    def actor(self) -> Actor:
        return Actor(self.distribution.outputs, self.hidden)

    @property
    def critic(self) -> Critic:
        return Critic(self.hidden)

    def init(self, key: jax.Array) -> PPOState:
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

    def act(self, policy: PolicyParams, observation: jax.Array) -> jax.Array:
        """The mode of the policy, for evaluation: [B, D] -> action [B, components]."""
        return self.distribution.mode(self._output(policy.actor, policy.normaliser, observation))

    def std(self, updates: jax.Array) -> jax.Array:
        """Standard deviation of the Gaussian policy after so many updates."""
        share = jnp.clip(updates / max(self.updates, 1), 0.0, 1.0)
        return self.config.std_start + share * (self.config.std_end - self.config.std_start)

    def rollout(
        self, state: PPOState, env: Environment, env_params: Tree, key: jax.Array
    ) -> tuple[Rollout, dict]:
        """Plays one batch of episodes. Returns the buffer and the process's info, [T, B] each."""
        keys = jax.random.split(key, env.horizon + 1)
        env_state, observation = env.reset(env_params, keys[0])
        std, steps, infos = self.std(state.updates), [], []
        for t in range(env.horizon):
            output = self._output(state.policy.actor, state.policy.normaliser, observation)
            action, log_prob = self.distribution.sample(output, keys[t + 1], std)
            value = self._value(state.critic, state.policy.normaliser, observation)
            env_state, following, reward, info = env.step(env_params, t, env_state, action)
            steps.append(Rollout(observation, action, log_prob, value, reward))
            infos.append(info)
            observation = following
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *steps), jax.tree.map(
            lambda *leaves: jnp.stack(leaves), *infos
        )

    def update(
        self, state: PPOState, env: Environment, env_params: Tree, key: jax.Array
    ) -> tuple[PPOState, Metrics, dict]:
        """One update on a fresh buffer. Returns the state, scalar metrics, and the process's info [T, B].

        Randomness comes from `key` alone.
        """
        config = self.config
        roll_key, epoch_key = jax.random.split(key)
        if config.normalise_observation:
            # The first statistics come from a rollout of their own, else the first buffer would be seen unscaled.
            # A loop that ends once anything was seen, not `cond`, which under vmap over seeds runs every update.
            def warm(own):
                warm_key = jax.random.fold_in(roll_key, own.count.astype(jnp.int32))
                return own.update(self.rollout(state, env, env_params, warm_key)[0].observation)

            normaliser = jax.lax.while_loop(lambda own: own.count == 0, warm, state.policy.normaliser)
            state = state._replace(policy=state.policy._replace(normaliser=normaliser))
        buffer, info = self.rollout(state, env, env_params, roll_key)
        advantage = gae(buffer.reward, buffer.value, config.gamma, config.lam)
        targets = advantage + buffer.value
        flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), (buffer, advantage, targets))
        state, losses = self._learn(state, *flat, epoch_key)
        if config.normalise_observation:
            policy = state.policy._replace(normaliser=state.policy.normaliser.update(buffer.observation))
            state = state._replace(policy=policy)
        spread = jnp.var(targets)
        metrics = {
            "reward": buffer.reward.mean(),
            "return": buffer.reward.sum(0).mean(),
            "explained_variance": 1 - jnp.var(targets - buffer.value) / jnp.maximum(spread, 1e-8),
            **losses,
        }
        return state._replace(updates=state.updates + 1), metrics, info

    def _learn(
        self, state: PPOState, buffer: Rollout, advantage: jax.Array, targets: jax.Array, key: jax.Array
    ):
        config, std, normaliser = self.config, self.std(state.updates), state.policy.normaliser
        actor_optimizer, critic_optimizer = self._optimizers()
        total = advantage.shape[0]
        if total % config.minibatches:
            raise UserError(
                f"ppo: {total} decisions an update cannot be cut into {config.minibatches} equal minibatches"
            )

        def minibatch(carry, index):
            actor, critic, actor_state, critic_state = carry
            part, own_advantage, target = jax.tree.map(lambda x: x[index], (buffer, advantage, targets))
            if config.normalise_advantage:
                own_advantage = (own_advantage - own_advantage.mean()) / (own_advantage.std() + 1e-8)

            def policy_objective(params):
                output = self._output(params, normaliser, part.observation)
                log_prob = self.distribution.log_prob(output, part.action, std)
                entropy = self.distribution.entropy(output, std).mean()
                loss, metrics = policy_loss(log_prob, part.log_prob, own_advantage, config.clip)
                return loss - config.entropy * entropy, {"policy_loss": loss, "entropy": entropy, **metrics}

            def value_objective(params):
                return value_loss(self._value(params, normaliser, part.observation), target)

            gradient, metrics = jax.grad(policy_objective, has_aux=True)(actor)
            loss, critic_gradient = jax.value_and_grad(value_objective)(critic)
            change, actor_state = actor_optimizer.update(gradient, actor_state, actor)
            critic_change, critic_state = critic_optimizer.update(critic_gradient, critic_state, critic)
            carry = (
                optax.apply_updates(actor, change),
                optax.apply_updates(critic, critic_change),
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
        """`updates` updates as one scan; metrics [updates]. Update i uses fold_in(key, i), i counted from the start of
        training."""

        def body(state, _):
            state, metrics, _ = self.update(state, env, env_params, jax.random.fold_in(key, state.updates))
            return state, metrics

        return jax.lax.scan(body, state, None, updates)

    def _output(self, actor: Tree, normaliser: RunningStatistics, observation: jax.Array) -> jax.Array:
        return self.actor.apply({"params": actor}, self._seen(normaliser, observation))

    def _value(self, critic: Tree, normaliser: RunningStatistics, observation: jax.Array) -> jax.Array:
        return self.critic.apply({"params": critic}, self._seen(normaliser, observation))

    def _seen(self, normaliser: RunningStatistics, observation: jax.Array) -> jax.Array:
        return normaliser(observation) if self.config.normalise_observation else observation

    def _optimizers(self) -> tuple[optax.GradientTransformation, optax.GradientTransformation]:
        config = self.config
        steps = self.updates * config.epochs * config.minibatches

        def build(rate):
            schedule = optax.linear_schedule(rate, 0.0, steps) if config.lr_decay else rate
            return optax.chain(
                optax.clip_by_global_norm(config.max_grad_norm), optax.adam(schedule, eps=config.adam_eps)
            )

        return build(config.actor_lr), build(config.critic_lr)
