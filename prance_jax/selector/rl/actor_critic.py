"""Actor and critic together: initial state, actions, optimizers, and behaviour cloning."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import optax

from prance_jax.core.losses import in_32_bits
from prance_jax.selector.rl.distributions import Distribution
from prance_jax.selector.rl.networks import Actor, Critic
from prance_jax.selector.rl.types import PolicyParams, PPOConfig, PPOState, RunningStatistics, Tree
from prance_jax.selector.rl.weighted import weighted_mean


@dataclass(frozen=True)
class ActorCritic:
    """An agent without its parameters; hashable, so it can be static under `jit`.

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
        blank = jnp.zeros((1, self.observation_size), jnp.float32)
        actor, critic = (
            self.actor.init(actor_key, blank)["params"],
            self.critic.init(critic_key, blank)["params"],
        )
        normaliser = RunningStatistics(
            jnp.float32(0),
            jnp.zeros(self.observation_size, jnp.float32),
            jnp.ones(self.observation_size, jnp.float32),
        )
        optimizers = self._optimizers()
        states = optimizers[0].init(actor), optimizers[1].init(critic)
        return PPOState(PolicyParams(actor, normaliser), critic, *states, jnp.int32(0))

    def act(
        self, policy_params: PolicyParams, observation: jax.Array, mask: jax.Array | None = None
    ) -> jax.Array:
        """Returns the mode of the policy among the available actions, for evaluation.

        Args:
          policy_params: parameters of the policy.
          observation: float32 [B, D].
          mask: bool [B, outputs], True where available; None if all are.

        Returns:
          Action [B, components].
        """
        output = self._output(policy_params.actor, policy_params.normaliser, observation, mask)
        return self.distribution.mode(output)

    def std(self, updates: jax.Array) -> jax.Array:
        """Returns the standard deviation of the Gaussian policy after a number of updates."""
        share = jnp.clip(updates / max(self.updates, 1), 0.0, 1.0)
        return self.config.std_start + share * (self.config.std_end - self.config.std_start)

    def clone(
        self,
        state: PPOState,
        observation: jax.Array,
        action: jax.Array,
        mask: jax.Array | None,
        weight: jax.Array,
        key: jax.Array,
        steps: int,
        batch: int,
    ) -> PPOState:
        """Trains the actor to take given actions (behaviour cloning), as one scan.

        The loss is the weighted mean of -log pi(action | observation). A step draws its rows with
        probabilities proportional to their weights. Adam starts afresh, at a constant `actor_lr`.

        Args:
          state: state of training.
          observation: float32 [N, D].
          action: [N, components], available where there is a mask.
          mask: bool [N, outputs], True where available; None if all actions are.
          weight: float32 [N], not negative; rows of weight 0 are ignored.
          key: random key; the only source of randomness.
          steps: gradient steps.
          batch: rows per step, drawn with replacement.

        Returns:
          The state with the cloned actor. If the normaliser was empty, it has the statistics of the
          rows of positive weight, which count equally. Nothing else differs.
        """
        normaliser, std = state.policy.normaliser, self.std(state.updates)
        optimizer = self._adam(self.config.actor_lr)
        counts = (weight > 0).astype(jnp.float32)
        if self.config.normalise_observation:
            filled = normaliser.update(observation, counts)
            normaliser = jax.tree.map(lambda x, y: jnp.where(normaliser.count == 0, x, y), filled, normaliser)
        data = observation, action, mask, counts

        def step(carry, index):
            actor, optimizer_state = carry
            observation, action, mask, counts = jax.tree.map(lambda x: x[index], data)

            def loss(actor):
                output = self._output(actor, normaliser, observation, mask)
                # Rounding can draw a row of weight 0.
                return -weighted_mean(self.distribution.log_prob(output, action, std), counts)

            update, optimizer_state = optimizer.update(jax.grad(loss)(actor), optimizer_state, actor)
            return (optax.apply_updates(actor, update), optimizer_state), None

        rows = jnp.arange(weight.shape[0], dtype=jnp.int32)
        index = jax.random.choice(key, rows, (steps, batch), p=weight / weight.sum())
        carry = state.policy.actor, optimizer.init(state.policy.actor)
        (actor, _), _ = jax.lax.scan(step, carry, index)
        return state._replace(policy=state.policy._replace(actor=actor, normaliser=normaliser))

    def _output(
        self,
        actor: Tree,
        normaliser: RunningStatistics,
        observation: jax.Array,
        mask: jax.Array | None = None,
    ) -> jax.Array:
        """The actor's outputs, those of unavailable actions very low."""
        output = self.actor.apply({"params": actor}, self._normalise(normaliser, observation))
        # Not -inf: the entropy multiplies log-probabilities by probabilities, and -inf times 0 is NaN.
        return output if mask is None else jnp.where(mask, output, -1e9)

    def _value(self, critic: Tree, normaliser: RunningStatistics, observation: jax.Array) -> jax.Array:
        return self.critic.apply({"params": critic}, self._normalise(normaliser, observation))

    def _normalise(self, normaliser: RunningStatistics, observation: jax.Array) -> jax.Array:
        return normaliser(observation) if self.config.normalise_observation else observation

    def _optimizers(self) -> tuple[optax.GradientTransformation, optax.GradientTransformation]:
        """Optimizers of actor and critic."""
        config = self.config
        steps = self.updates * config.epochs * config.minibatches

        def build(rate):
            return self._adam(optax.linear_schedule(rate, 0.0, steps) if config.lr_decay else rate)

        return build(config.actor_lr), build(config.critic_lr)

    def _adam(self, rate: optax.ScalarOrSchedule) -> optax.GradientTransformation:
        """Adam with the settings' epsilon and clipping of gradients."""
        config = self.config
        adam = optax.adam(rate, eps=config.adam_eps)
        return in_32_bits(optax.chain(optax.clip_by_global_norm(config.max_grad_norm), adam))
