"""PPO: losses by hand, invariants of an update, and a toy environment with a known best policy."""

from dataclasses import dataclass

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from prance_jax.core.errors import UserError
from prance_jax.selector.rl.distributions import Gaussian, MultiCategorical
from prance_jax.selector.rl.losses import policy_loss, value_loss
from prance_jax.selector.rl.ppo import PPO
from prance_jax.selector.rl.types import PPOConfig, RunningStatistics


@dataclass(frozen=True)
class Toy:
    """Three steps. Each shows a fresh sign; the best action is 1 or 0 by the sign, and the best return is 3.

    The second component of the action must be the opposite of the first.
    """

    batch: int = 64
    horizon: int = 3

    def reset(self, key, env_params):
        signs = jax.random.bernoulli(key, 0.5, (self.horizon, self.batch)).astype(jnp.float32)
        return self._show(signs, 0), (0, signs)

    def step(self, key, env_state, action, env_params):
        t, signs = env_state
        first, second = jnp.clip(action[:, 0], 0, 1), jnp.clip(action[:, 1], 0, 1)
        reward = 1 - 0.5 * jnp.abs(first - signs[t]) - 0.5 * jnp.abs(second - (1 - signs[t]))
        done = t + 1 == self.horizon
        observation = jnp.zeros((self.batch, 4)) if done else self._show(signs, t + 1)
        return observation, (t + 1, signs), reward, jnp.full(self.batch, done), {"first": first}

    def _show(self, signs, t):
        step = jnp.broadcast_to(jax.nn.one_hot(t, 3), (self.batch, 3))
        return jnp.concatenate([2 * signs[t][:, None] - 1, step], axis=1)


def make(discrete=True, updates=60, **settings):
    family = MultiCategorical((2, 2)) if discrete else Gaussian(2)
    settings = {"actor_lr": 3e-3, "epochs": 4, "minibatches": 2, **settings}
    return PPO(PPOConfig(**settings), family, 4, (16, 16), updates)


def test_policy_loss_by_hand():
    # Ratios 1.5, 0.5, 1.1; clip 0.2; advantages 1, -1, 2.
    # min(1.5, 1.2), min(-0.5, -0.8), min(2.2, 2.2): mean 2.6 / 3.
    old_log_prob = jnp.log(jnp.array([0.2, 0.4, 0.5]))
    log_prob = jnp.log(jnp.array([0.3, 0.2, 0.55]))
    loss, metrics = policy_loss(log_prob, old_log_prob, jnp.array([1.0, -1.0, 2.0]), jnp.ones(3), 0.2)
    np.testing.assert_allclose(loss, -(1.2 - 0.8 + 2.2) / 3, rtol=1e-5)
    np.testing.assert_allclose(metrics["clip_fraction"], 2 / 3, rtol=1e-6)
    np.testing.assert_allclose(
        metrics["approx_kl"], np.mean([0.5 - np.log(1.5), -0.5 - np.log(0.5), 0.1 - np.log(1.1)]), rtol=1e-4
    )
    np.testing.assert_allclose(value_loss(jnp.array([1.0, 2.0]), jnp.array([3.0, 2.0]), jnp.ones(2)), 1.0)


def test_policy_loss_agrees_with_rlax():
    rlax = pytest.importorskip("rlax")
    log_ratio, advantage = jax.random.normal(jax.random.key(0), (2, 50)) * 0.3
    loss, _ = policy_loss(log_ratio, jnp.zeros(50), advantage, jnp.ones(50), 0.2)
    np.testing.assert_allclose(
        loss, rlax.clipped_surrogate_pg_loss(jnp.exp(log_ratio), advantage, 0.2), rtol=1e-5
    )


@pytest.mark.parametrize("discrete", [True, False])
def test_reaches_the_best_policy(discrete):
    ppo, toy = make(discrete), Toy()
    train = jax.jit(lambda state, key: ppo.train(state, toy, (), key, 60))
    state, metrics = train(ppo.init(jax.random.key(0)), jax.random.key(1))
    key = jax.random.key(2)
    observation, env_state = toy.reset(key, ())
    total = 0.0
    for _ in range(3):
        action = ppo.act(state.policy, observation)
        observation, env_state, reward, done, _ = toy.step(key, env_state, action, ())
        total += float(reward.mean())
    assert done.all()
    assert total >= 0.95 * 3, f"return {total:.3f} of the best 3.0"
    assert metrics["return"][-1] > metrics["return"][0]


def test_first_pass_has_ratio_one():
    """Old log-probabilities are those of the sampling: nothing is clipped before the first step."""
    ppo = make(epochs=1, minibatches=1)
    _, metrics, _ = jax.jit(lambda s, k: ppo.update(s, Toy(), (), k))(
        ppo.init(jax.random.key(0)), jax.random.key(1)
    )
    assert float(metrics["clip_fraction"]) == 0.0
    np.testing.assert_allclose(metrics["approx_kl"], 0.0, atol=1e-6)


def test_scan_over_updates_is_a_loop_of_updates_and_traces_once():
    ppo, toy, key = make(updates=3), Toy(), jax.random.key(1)
    state = ppo.init(jax.random.key(0))
    scanned, _ = jax.jit(lambda state: ppo.train(state, toy, (), key, 3))(state)
    update = jax.jit(
        chex.assert_max_traces(
            lambda state, i: ppo.update(state, toy, (), jax.random.fold_in(key, i))[0], n=1
        )
    )
    for index in range(3):
        state = update(state, jnp.int32(index))
    chex.assert_trees_all_close(scanned, state, rtol=1e-5, atol=1e-6)


def test_seeds_by_vmap_are_separate_runs():
    ppo, toy = make(updates=2), Toy()
    keys = jax.vmap(jax.random.key)(jnp.arange(2))
    together = jax.jit(jax.vmap(lambda key: ppo.train(ppo.init(key), toy, (), key, 2)[0].policy))(keys)
    alone = jax.jit(lambda key: ppo.train(ppo.init(key), toy, (), key, 2)[0].policy)
    for seed in range(2):
        policy = alone(keys[seed])
        chex.assert_trees_all_close(jax.tree.map(lambda x: x[seed], together), policy, rtol=1e-4, atol=1e-5)


def test_fresh_buffer_every_update():
    """An update learns only from its own buffer: at learning rates zero only statistics change."""
    ppo = make(actor_lr=0.0, critic_lr=0.0)
    state = ppo.init(jax.random.key(0))
    after, _, info = ppo.update(state, Toy(), (), jax.random.key(1))
    chex.assert_trees_all_equal(after.policy.actor, state.policy.actor)
    assert int(after.updates) == 1 and info["first"].shape == (3, 64)


def test_entropy_bonus_moves_the_policy():
    """Without a reward signal the only gradient is that of the entropy."""

    class Flat(Toy):
        def step(self, key, env_state, action, env_params):
            observation, env_state, reward, done, info = super().step(key, env_state, action, env_params)
            return observation, env_state, jnp.zeros_like(reward), done, info

    plain, bonus = (
        make(epochs=1, minibatches=1, entropy=weight, normalise_advantage=False) for weight in (0.0, 1.0)
    )
    state = plain.init(jax.random.key(0))
    state = state._replace(critic=jax.tree.map(jnp.zeros_like, state.critic))
    still = plain.update(state, Flat(), (), jax.random.key(1))[0].policy.actor
    moved = bonus.update(state, Flat(), (), jax.random.key(1))[0].policy.actor
    chex.assert_trees_all_close(still, state.policy.actor, atol=1e-7)
    assert float(jnp.abs(moved["fc_mu"]["bias"] - state.policy.actor["fc_mu"]["bias"]).max()) > 1e-4


def test_running_statistics_are_those_of_all_observations():
    parts = jax.random.normal(jax.random.key(0), (3, 40, 2)) * 3 + 1
    running = RunningStatistics(jnp.float32(0), jnp.zeros(2), jnp.ones(2))
    for part in parts:
        running = running.update(part, jnp.ones(40))
    flat = np.asarray(parts).reshape(-1, 2)
    np.testing.assert_allclose(running.mean, flat.mean(0), rtol=1e-4)
    np.testing.assert_allclose(running.variance, flat.var(0), rtol=1e-4)


def test_schedule_of_the_standard_deviation():
    ppo = make(discrete=False, updates=100)
    np.testing.assert_allclose(
        [ppo.std(0), ppo.std(50), ppo.std(100), ppo.std(200)], [0.3, 0.175, 0.05, 0.05], rtol=1e-5
    )


def test_a_buffer_that_does_not_divide_is_refused():
    with pytest.raises(UserError, match="192 decisions .* 5 equal"):
        ppo = make(minibatches=5)
        ppo.update(ppo.init(jax.random.key(0)), Toy(), (), jax.random.key(1))


@pytest.mark.parametrize("discrete", [True, False])
def test_an_update_is_the_algorithm_written_plainly(discrete):
    """Three passes over one buffer by optax and jax.grad alone, at a learning rate halfway down."""
    gamma, lam, clip, weight, limit, rate = 0.8, 0.7, 0.05, 0.3, 0.01, 3e-3
    settings = dict(gamma=gamma, lam=lam, clip=clip, entropy=weight, max_grad_norm=limit)
    settings |= dict(actor_lr=rate, critic_lr=2 * rate, epochs=3, minibatches=1)
    ppo, toy = make(discrete, updates=2, **settings), Toy()
    update = jax.jit(lambda state, key: ppo.update(state, toy, (), key)[:2])
    start, _ = update(ppo.init(jax.random.key(0)), jax.random.key(1))
    result, metrics = update(start, jax.random.key(2))

    # The buffer of an update is that of the first half of its key.
    rollout = jax.jit(lambda key: ppo.rollout(start, toy, (), key)[0])
    buffer = rollout(jax.random.split(jax.random.key(2))[0])
    r, v = np.asarray(buffer.reward), np.asarray(buffer.value)
    a2 = r[2] - v[2]
    a1 = r[1] + gamma * v[2] - v[1] + gamma * lam * a2
    a0 = r[0] + gamma * v[1] - v[0] + gamma * lam * a1
    advantage = np.stack([a0, a1, a2])
    target = advantage + v
    advantage = (advantage - advantage.mean()) / advantage.std()
    observation, family, std = start.policy.normaliser(buffer.observation), ppo.distribution, 0.175

    def actor_loss(params):
        output = ppo.actor.apply({"params": params}, observation)
        ratio = jnp.exp(family.log_prob(output, buffer.action, std) - buffer.log_prob)
        surrogate = jnp.minimum(ratio * advantage, jnp.clip(ratio, 1 - clip, 1 + clip) * advantage)
        return -surrogate.mean() - weight * family.entropy(output, std).mean()

    def critic_loss(params):
        return 0.5 * ((ppo.critic.apply({"params": params}, observation) - target) ** 2).mean()

    def train(loss, params, state, rate):
        chain = optax.chain(
            optax.clip_by_global_norm(limit), optax.adam(optax.linear_schedule(rate, 0, 6), eps=1e-5)
        )
        gradient = jax.jit(jax.grad(loss))
        for _ in range(3):
            updates, state = chain.update(gradient(params), state)
            params = optax.apply_updates(params, updates)
        return params

    actor = train(actor_loss, start.policy.actor, start.actor_optimizer, rate)
    critic = train(critic_loss, start.critic, start.critic_optimizer, 2 * rate)
    chex.assert_trees_all_close(result.policy.actor, actor, rtol=1e-3, atol=1e-5)
    chex.assert_trees_all_close(result.critic, critic, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(metrics["return"], r.sum(0).mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["reward"], r.mean(), rtol=1e-5)
    np.testing.assert_allclose(
        metrics["explained_variance"], 1 - (target - v).var() / target.var(), rtol=1e-3
    )
    assert float(result.policy.normaliser.count - start.policy.normaliser.count) == r.size


def test_every_decision_is_learned_from_once_an_epoch_in_random_order():
    ppo, toy = make(epochs=2, minibatches=3, lr_decay=False), Toy()
    state = ppo.init(jax.random.key(0))
    update = jax.jit(lambda state, key: ppo.update(state, toy, (), key)[0])
    assert int(optax.tree_utils.tree_get(update(state, jax.random.key(1)).actor_optimizer, "count")) == 6

    buffer = jax.jit(lambda key: ppo.rollout(state, toy, (), key)[0])(jax.random.key(1))
    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), buffer)
    learn = jax.jit(lambda key: ppo._learn(state, flat, flat.reward - flat.value, flat.reward, key)[0].critic)
    one, other = learn(jax.random.key(2)), learn(jax.random.key(3))
    assert float(jnp.abs(one["fc1"]["kernel"] - other["fc1"]["kernel"]).max()) > 1e-5


def test_the_scale_of_observations_does_not_matter_from_the_first_update_on():
    class Scaled(Toy):
        def _show(self, signs, t):
            return 40.0 * super()._show(signs, t) - 20.0

    ppo, key = make(epochs=1, updates=2), jax.random.key(1)
    plain, scaled = (
        jax.jit(lambda state, toy=toy: ppo.train(state, toy, (), key, 2)[1])(ppo.init(jax.random.key(0)))
        for toy in (Toy(), Scaled())
    )
    chex.assert_trees_all_close(plain, scaled, rtol=1e-3, atol=1e-4)


def test_statistics_keep_their_digits_where_the_mean_is_large():
    parts = 300 + 0.1 * jax.random.normal(jax.random.key(0), (20, 400, 1))
    running = RunningStatistics(jnp.float32(0), jnp.zeros(1), jnp.ones(1))
    for part in parts:
        running = running.update(part, jnp.ones(400))
    np.testing.assert_allclose(running(parts).std(), 1.0, rtol=0.01)


def test_no_random_key_is_used_twice():
    ppo = make()
    with jax.debug_key_reuse(True):
        jax.jit(lambda key: ppo.update(ppo.init(jax.random.key(0)), Toy(), (), key)[1])(jax.random.key(1))
