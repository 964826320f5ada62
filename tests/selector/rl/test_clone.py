"""Behaviour cloning: known policies are reproduced, and nothing but the actor is trained."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np

from prance_jax.selector.rl.distributions import Gaussian, MultiCategorical
from prance_jax.selector.rl.ppo import PPO
from prance_jax.selector.rl.types import PPOConfig


def make(distribution):
    return PPO(PPOConfig(actor_lr=1e-2), distribution, 3, (32, 32), 10)


@functools.lru_cache
def clone(ppo, steps=400, batch=64):
    return jax.jit(lambda *arguments: ppo.clone(*arguments, steps, batch))


PPO_DISCRETE = make(MultiCategorical((3, 2)))
OBSERVATION = jax.random.normal(jax.random.key(0), (64, 3)) * 5 + 20
# The index of the largest number, and whether the first is above 20.
ACTION = jnp.stack([jnp.argmax(OBSERVATION, 1), (OBSERVATION[:, 0] > 20).astype(int)], 1).astype(jnp.int32)


def test_reproduces_a_deterministic_policy_and_ignores_rows_of_weight_zero():
    state = PPO_DISCRETE.init(jax.random.key(1))
    wrong = (ACTION + 1) % jnp.array([3, 2])
    observation = jnp.concatenate([OBSERVATION, OBSERVATION + 1e-3])
    action, weight = jnp.concatenate([ACTION, wrong]), jnp.repeat(jnp.array([1.0, 0.0]), 64)
    cloned = clone(PPO_DISCRETE)(state, observation, action, None, weight, jax.random.key(2))
    assert (PPO_DISCRETE.act(cloned.policy, OBSERVATION) == ACTION).mean() >= 0.97

    np.testing.assert_allclose(cloned.policy.normaliser.mean, np.asarray(OBSERVATION).mean(0), rtol=1e-5)
    np.testing.assert_allclose(cloned.policy.normaliser.variance, np.asarray(OBSERVATION).var(0), rtol=1e-4)
    assert float(cloned.policy.normaliser.count) == 64
    chex.assert_trees_all_equal(cloned._replace(policy=state.policy), state)

    # The normaliser is not empty any more, so other observations leave it as it is.
    again = clone(PPO_DISCRETE)(cloned, observation + 7, action, None, weight, jax.random.key(3))
    chex.assert_trees_all_equal(again.policy.normaliser, cloned.policy.normaliser)


def test_probabilities_follow_the_weights():
    """One observation, action 0 of weight 3 and action 1 of weight 1: probabilities 0.75 and 0.25."""
    ppo = make(MultiCategorical((3,)))
    state = ppo.init(jax.random.key(1))
    observation, action = jnp.ones((2, 3)), jnp.array([[0], [1]])
    cloned = clone(ppo, 400, 256)(state, observation, action, None, jnp.array([3.0, 1.0]), jax.random.key(2))
    output = ppo._output(cloned.policy.actor, cloned.policy.normaliser, observation[:1])
    np.testing.assert_allclose(jax.nn.softmax(output)[0], [0.75, 0.25, 0.0], atol=0.05)


def test_masked_actions_take_no_part():
    """Only one action is available, so its probability is 1 and the actor has no gradient."""
    state = PPO_DISCRETE.init(jax.random.key(1))
    mask = jnp.concatenate([jax.nn.one_hot(ACTION[:, 0], 3), jax.nn.one_hot(ACTION[:, 1], 2)], 1) > 0
    cloned = clone(PPO_DISCRETE)(state, OBSERVATION, ACTION, mask, jnp.ones(64), jax.random.key(2))
    chex.assert_trees_all_equal(cloned.policy.actor, state.policy.actor)
    np.testing.assert_array_equal(PPO_DISCRETE.act(cloned.policy, OBSERVATION, mask), ACTION)


def test_the_first_step_is_that_of_adam():
    """Adam's first step is the sign of the gradient times the learning rate, without decay over updates."""
    state = PPO_DISCRETE.init(jax.random.key(1))._replace(updates=jnp.int32(10))
    after = clone(PPO_DISCRETE, 1, 64)(state, OBSERVATION, ACTION, None, jnp.ones(64), jax.random.key(2))
    moved = np.abs(np.asarray(after.policy.actor["fc_mu"]["bias"] - state.policy.actor["fc_mu"]["bias"]))
    np.testing.assert_allclose(moved, 1e-2, rtol=0.01)


def test_gaussian_policies_under_vmap_over_seeds():
    ppo = make(Gaussian(1))
    action = 0.5 + 0.3 * jnp.tanh((OBSERVATION[:, :1] - 20) / 5)
    run = lambda key: clone(ppo)(ppo.init(key), OBSERVATION, action, None, jnp.ones(64), key).policy
    policies = jax.vmap(run)(jax.vmap(jax.random.key)(jnp.arange(2)))
    mode = jax.vmap(lambda policy: ppo.act(policy, OBSERVATION))(policies)
    assert float(jnp.abs(mode[0] - mode[1]).max()) > 0
    np.testing.assert_allclose(mode, np.broadcast_to(action, mode.shape), atol=0.08)
