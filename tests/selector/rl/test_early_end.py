"""Early ends and action masks, on a tabulated process whose best return is known."""

import functools
from dataclasses import dataclass

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from prance_jax.selector.rl.advantage import gae
from prance_jax.selector.rl.distributions import MultiCategorical
from prance_jax.selector.rl.ppo import PPO
from prance_jax.selector.rl.types import PPOConfig

STOP, BONUS, TRAP = 0, 2, 3


@dataclass(frozen=True)
class Stopping:
    """Image of kind k = 0, 1, 2 earns 1 if it stops at step k, and 0 at other steps.

    Actions: stop, continue, continue with 0.5 (only at step 1), and 10 (never available). So the best
    returns of the kinds are 1, 1 and 1.5. After the end only the trap is "available".

    `after_end` stands in observations and rewards after the end, which must not count.
    """

    after_end: float = 0.0
    batch: int = 48
    horizon: int = 3

    def reset(self, key, env_params):
        kind, done = jnp.arange(self.batch) % 3, jnp.zeros(self.batch, bool)
        return self._observe(kind, 0, done), (0, kind, done)

    def action_mask(self, env_state, env_params):
        t, _, done = env_state
        return jnp.where(done[:, None], jnp.arange(4) == TRAP, jnp.array([True, True, t == 1, False]))

    def step(self, key, env_state, action, env_params):
        t, kind, done = env_state
        table = jnp.stack([1.0 * (kind == t), 0.0 * kind, 0.5 + 0.0 * kind, 10.0 + 0.0 * kind], axis=1)
        reward = jnp.where(done, self.after_end, jnp.take_along_axis(table, action, axis=1)[:, 0])
        done = done | (action[:, 0] == STOP) | (t == self.horizon - 1)
        return self._observe(kind, t + 1, done), (t + 1, kind, done), reward, done, {"kind": kind}

    def _observe(self, kind, t, done):
        step = jnp.broadcast_to(jax.nn.one_hot(t, 3), (self.batch, 3))
        observation = jnp.concatenate([jax.nn.one_hot(kind, 3), step], axis=1)
        return jnp.where(done[:, None], self.after_end, observation)


BEST = (1 + 1 + 1.5) / 3
KINDS = np.arange(48) % 3
UPDATES = 40


def make(updates=UPDATES, **settings):
    settings = {"actor_lr": 1e-2, "epochs": 4, "minibatches": 2, **settings}
    return PPO(PPOConfig(**settings), MultiCategorical((4,)), 6, (16, 16), updates)


@functools.lru_cache
def update(ppo, after_end=100.0):
    return jax.jit(lambda state, key: ppo.update(state, Stopping(after_end), (), key)[:2])


@jax.jit
def play(state, key):
    """The buffer that `update` learns from, given its key, once the normaliser is not empty."""
    return make().rollout(state, Stopping(100.0), (), jax.random.split(key)[0])[0]


@pytest.fixture(scope="module")
def second_update():
    """The state before, the buffer, the metrics, and the state after one gradient step."""
    ppo = make(epochs=1, minibatches=1, entropy=0.3)
    start, _ = update(ppo)(ppo.init(jax.random.key(0)), jax.random.key(1))
    after, metrics = update(ppo)(start, jax.random.key(2))
    return start, play(start, jax.random.key(2)), metrics, after


@pytest.fixture(scope="module")
def trained():
    """Two seeds, trained by one vmapped scan on rewards of 100 after the end."""
    ppo, env = make(), Stopping(after_end=100.0)
    train = jax.jit(jax.vmap(lambda key: ppo.train(ppo.init(key), env, (), key, UPDATES)))
    state, metrics = train(jax.vmap(jax.random.key)(jnp.arange(2)))
    return ppo, jax.tree.map(lambda x: x[1], state), metrics


def test_reaches_the_best_return(trained):
    ppo, state, metrics = trained
    returns = np.asarray(metrics["return"])
    assert returns.max() <= 1.2 * BEST, "rewards after the end or of the trap have counted"
    np.testing.assert_allclose(returns[:, -1], BEST, rtol=0.05)
    assert set(metrics) >= {"entropy", "explained_variance"}

    env, key = Stopping(), jax.random.key(0)
    observation, env_state = env.reset(key, ())
    total, is_real = np.zeros(48), np.ones(48, bool)
    for _ in range(3):
        mask = env.action_mask(env_state, ())
        action = ppo.act(state.policy, observation, mask)
        assert mask[np.arange(48), action[:, 0]].all()
        observation, env_state, reward, done, _ = env.step(key, env_state, action, ())
        total, is_real = total + np.asarray(reward) * is_real, is_real & ~np.asarray(done)
    np.testing.assert_allclose(total.mean(), BEST, rtol=0.03)


def test_unavailable_actions_are_never_sampled(trained):
    ppo, state, _ = trained
    # The actor wants the trap above all.
    bias = state.policy.actor["fc_mu"]["bias"].at[TRAP].add(1e3)
    layer = {**state.policy.actor["fc_mu"], "bias": bias}
    policy = state.policy._replace(actor={**state.policy.actor, "fc_mu": layer})
    for seed in range(3):
        buffer = play(state._replace(policy=policy), jax.random.key(seed))
        available = np.take_along_axis(np.asarray(buffer.mask), np.asarray(buffer.action), axis=-1)[..., 0]
        assert available.all()
        is_real = np.asarray(buffer.weight) == 1
        assert (np.asarray(buffer.action)[..., 0][is_real] != TRAP).all()
        assert (np.asarray(buffer.action)[[0, 2], :, 0][is_real[[0, 2]]] != BONUS).all()
        assert np.isfinite(np.asarray(buffer.log_prob)).all()
    observation = Stopping().reset(jax.random.key(0), ())[0]
    assert (ppo.act(policy, observation) == TRAP).all(), "without a mask the mode is the trap"
    only_stop = jnp.broadcast_to(jnp.arange(4) == STOP, (48, 4))
    assert (ppo.act(policy, observation, only_stop) == STOP).all()


def test_the_buffer_ends_where_episodes_end(second_update):
    _, buffer, _, _ = second_update
    weight, action = np.asarray(buffer.weight), np.asarray(buffer.action)[..., 0]
    assert weight.dtype == np.float32 and buffer.mask.shape == (3, 48, 4)
    np.testing.assert_array_equal(weight[0], 1)
    np.testing.assert_array_equal(weight[1], action[0] != STOP)
    np.testing.assert_array_equal(weight[2], (action[0] != STOP) & (action[1] != STOP))
    expected = np.stack([(KINDS == t) * (action[t] == STOP) + 0.5 * (action[t] == BONUS) for t in range(3)])
    np.testing.assert_allclose(buffer.reward, expected * weight)


def test_metrics_are_means_over_real_decisions(second_update):
    """There is one gradient step, so the losses are those of the policy that played."""
    start, buffer, metrics, _ = second_update
    is_real = np.asarray(buffer.weight) == 1
    assert 0.3 < is_real.mean() < 0.9
    reward, value = np.asarray(buffer.reward), np.asarray(buffer.value)
    np.testing.assert_allclose(metrics["reward"], reward[is_real].mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["return"], sum(reward).mean(), rtol=1e-5)

    # Advantages by a loop over each episode's own steps.
    target = np.zeros_like(value)
    for image in range(48):
        advantage, next_value = 0.0, 0.0
        for t in reversed(range(int(is_real[:, image].sum()))):
            delta = reward[t, image] + 0.9 * next_value - value[t, image]
            advantage, next_value = delta + 0.81 * advantage, value[t, image]
            target[t, image] = advantage + value[t, image]
    error = (target - value)[is_real]
    np.testing.assert_allclose(metrics["value_loss"], 0.5 * (error**2).mean(), rtol=1e-4)
    np.testing.assert_allclose(
        metrics["explained_variance"], 1 - error.var() / target[is_real].var(), rtol=1e-3, atol=1e-4
    )
    # Normalised advantages have mean 0 over real decisions, and all ratios are 1.
    np.testing.assert_allclose(metrics["policy_loss"], 0.0, atol=1e-6)
    np.testing.assert_allclose(metrics["approx_kl"], 0.0, atol=1e-6)

    observation = start.policy.normaliser(buffer.observation)
    output = np.asarray(make().actor.apply({"params": start.policy.actor}, observation))
    probability = np.exp(output) * np.asarray(buffer.mask)
    probability /= probability.sum(-1, keepdims=True)
    entropy = -(probability * np.log(np.where(probability > 0, probability, 1))).sum(-1)
    np.testing.assert_allclose(metrics["entropy"], entropy[is_real].mean(), rtol=1e-4)


def test_the_gradient_is_that_of_real_decisions_alone(second_update):
    """By optax and jax.grad on a buffer without the rows after the end."""
    start, buffer, _, after = second_update
    is_real, family = np.asarray(buffer.weight) == 1, make().distribution
    advantage = np.asarray(gae(buffer.reward, buffer.value, buffer.weight, 0.9, 0.9))[is_real]
    advantage = (advantage - advantage.mean()) / advantage.std()
    observation, action, mask = (x[is_real] for x in (buffer.observation, buffer.action, buffer.mask))

    def loss(params):
        output = make().actor.apply({"params": params}, start.policy.normaliser(observation))
        output = jnp.where(mask, output, -1e9)
        surrogate = family.log_prob(output, action, 0.3) * advantage  # its gradient is that of the ratio
        return -surrogate.mean() - 0.3 * family.entropy(output, 0.3).mean()

    schedule = optax.linear_schedule(1e-2, 0, UPDATES)
    chain = optax.chain(optax.clip_by_global_norm(0.5), optax.adam(schedule, eps=1e-5))
    actor = start.policy.actor
    step, _ = chain.update(jax.jit(jax.grad(loss))(actor), start.actor_optimizer)
    chex.assert_trees_all_close(after.policy.actor, optax.apply_updates(actor, step), rtol=1e-3, atol=1e-5)


def test_nothing_after_the_end_matters():
    """Other observations and rewards after the end change neither parameters nor metrics nor statistics."""
    ppo = make()
    plain, other = (update(ppo, end)(ppo.init(jax.random.key(0)), jax.random.key(1)) for end in (0.0, 100.0))
    chex.assert_trees_all_close(plain, other, rtol=1e-5, atol=1e-6)


def test_statistics_count_real_decisions(second_update):
    start, buffer, _, after = second_update
    num_real = after.policy.normaliser.count - start.policy.normaliser.count
    assert float(num_real) == float(buffer.weight.sum()) < buffer.weight.size
    assert float(after.policy.normaliser.mean.max()) <= 1.0, "100 stands in observations after the end"


def test_losses_do_not_depend_on_the_number_of_minibatches(second_update):
    """At learning rates zero; minibatches differ in how many of their decisions are real."""
    start, _, expected, _ = second_update
    ppo = make(epochs=1, minibatches=4, actor_lr=0.0, critic_lr=0.0)
    _, metrics = update(ppo)(start, jax.random.key(2))
    for name in ("entropy", "value_loss"):
        np.testing.assert_allclose(metrics[name], expected[name], rtol=1e-5)
