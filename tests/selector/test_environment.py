"""The decision process: Result-to-Go, cost weights, and how much of the network an episode runs."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import KEEP, SPACE, make_spec

from prance_jax.config.io import from_dict
from prance_jax.config.stages import SelectorConfig
from prance_jax.core.errors import UserError
from prance_jax.models import forward
from prance_jax.models.vit import ViT
from prance_jax.selector import environment as environment_module
from prance_jax.selector.environment import EnvParams
from prance_jax.selector.observation import mlp_macs
from prance_jax.selector.policies import RandomPolicy
from prance_jax.selector.reward import RewardConfig
from prance_jax.spec.macs import macs
from prance_jax.spec.structure import Structure
from prance_jax.training.stages.selector import Selector, _pool_batch

KEY = jax.random.key(3)


def make(mode="prune", **changes):
    settings = dict(
        updates=1, batch=6, pool=12, keep_choices=KEEP, hidden=(8,), reward=RewardConfig(keep_weight=0.1)
    )
    spec = make_spec(mode)
    return Selector(spec, SelectorConfig(**{**settings, **changes}), SPACE.first_group("max"))


@pytest.fixture(scope="module")
def env_params(params, images):
    full = ViT(make_spec()).apply({"params": params}, images, make_spec().largest)
    return EnvParams(params, images, jnp.arange(6) % 5, full, jnp.float32(0.3))


def test_the_pool_holds_images_as_the_network_reads_them(params, images):
    spec = dataclasses.replace(make_spec(), dtype="bfloat16")
    pool, labels, logits = _pool_batch(spec, lambda tables, key, batch: (images, jnp.arange(6)), 6)(
        params, (), jax.random.key(0)
    )
    assert pool.dtype == jnp.bfloat16 and pool.nbytes * 2 == images.nbytes
    classify = lambda x: ViT(spec).apply({"params": params}, x, spec.largest)
    np.testing.assert_array_equal(classify(pool), classify(images))
    assert logits.dtype == jnp.float32


def test_result_to_go_is_the_reward_of_an_unbroken_run(env_params):
    """Each decision's reward equals that of an unbroken run with later groups at their default."""
    selector, env = make(), make().env
    observation, env_state = env.reset(KEY, env_params)
    indices = jax.random.randint(KEY, (6,), 0, 6)
    images, labels, spec = env_params.images[indices], env_params.labels[indices], selector.spec
    policy = RandomPolicy(selector.first_choice, selector.finite_actions)
    assert observation.shape == (6, selector.encoder.size)
    for t in range(3):
        action = policy.sample(0.0, jax.random.key(10 + t), 6)
        observation, env_state, reward, done, info = env.step(KEY, env_state, action, env_params)
        structure = Structure(env_state.choices + spec.largest.groups[t + 2 :])
        logits = forward.forward_adaptive(
            ViT(spec), env_params.params, images, selector.first_choice, forward.fixed_decisions(structure)
        ).logits
        correct = np.asarray(jnp.argmax(logits, -1) == labels)
        forgiven = np.asarray(jnp.argmax(env_params.full_logits[indices], -1) != labels)
        full = macs(spec, spec.largest).total
        share = np.asarray(macs(spec, structure, selector.decision_cost).total) / full
        keep = np.asarray(env_state.choices[-1].keep[0])
        np.testing.assert_allclose(reward, (correct | forgiven) - 0.3 * share - 0.1 * keep, rtol=1e-4)
        np.testing.assert_allclose(info["macs_kept"], share, rtol=1e-5)
        assert done.shape == (6,) and (done == (t == 2)).all()


def test_an_episode_takes_seven_group_evaluations(env_params, monkeypatch):
    """1 + 3 + 2 + 1, not 4 x 4: the prefix before a decision is kept."""
    calls = []

    def counting(function):
        def call(*arguments):
            calls.append(function)
            return function(*arguments)

        return call

    forward_first_group, forward_group = map(counting, (forward.forward_first_group, forward.forward_group))
    monkeypatch.setattr(environment_module, "forward_first_group", forward_first_group)
    monkeypatch.setattr(environment_module, "forward_group", forward_group)
    monkeypatch.setattr(forward, "forward_group", forward_group)
    ppo, env = make().ppo, make().env
    jax.eval_shape(lambda: ppo.rollout(ppo.init(jax.random.key(0)), env, env_params, jax.random.key(1)))
    assert len(calls) == 7


def test_a_selector_of_every_budget_observes_and_pays_its_own_cost_weight(env_params):
    """The observation ends with asinh(w / 0.01), and rewards are (quality - w x MACs) / sqrt(|w| + 0.01).

    Image by image, also where the cost weight w is below zero.
    """
    env = make(cost_weights=(-0.05, 0.8)).env
    env_params = env_params._replace(cost_weight=(jnp.float32(-0.05), jnp.float32(0.8)))
    observation, env_state = env.reset(KEY, env_params)
    cost_weight = 0.01 * np.sinh(np.asarray(observation)[:, -1])
    np.testing.assert_allclose(cost_weight, env_state.cost_weight, rtol=1e-5)
    assert -0.05 <= cost_weight.min() < 0 and cost_weight.max() <= 0.8 and len(set(cost_weight)) == 6
    action = jnp.zeros((6, env.actions.components), jnp.int32)
    next_observation, _, reward, _, info = env.step(KEY, env_state, action, env_params)
    np.testing.assert_array_equal(next_observation[:, -1], observation[:, -1])
    without_cost = env_state._replace(cost_weight=jnp.zeros(6))
    quality = np.asarray(env.step(KEY, without_cost, action, env_params)[2]) * np.sqrt(0.01)
    cost = quality - np.asarray(reward) * np.sqrt(np.abs(cost_weight) + 0.01)
    np.testing.assert_allclose(cost, cost_weight * np.asarray(info["macs_kept"]), rtol=1e-4, atol=1e-6)
    with pytest.raises(UserError, match="needs a cost weight"):
        env.encoder(env_state.group_state, 1)


def test_a_measured_cost_replaces_macs(env_params):
    """A quarter of the dense network's time, whatever is chosen: rewards are quality - cost weight x 0.25."""
    env = dataclasses.replace(make().env, cost=lambda structure: jnp.full(6, 0.25))
    _, env_state = env.reset(KEY, env_params)
    action = jnp.zeros((6, env.actions.components), jnp.int32)
    without_cost = env_state._replace(cost_weight=jnp.zeros(6))
    _, with_cost, _, _, info = env.step(KEY, env_state, action, env_params)
    _, without_cost, *_ = env.step(KEY, without_cost, action, env_params)
    np.testing.assert_allclose(
        without_cost.utility - with_cost.utility, 0.25 * env_state.cost_weight, rtol=1e-5
    )
    assert (info["cost"] == 0.25).all() and (info["macs_kept"] != 0.25).all()


def test_an_unknown_policy_is_refused():
    with pytest.raises(UserError, match="policy = 'beta' is not known; choose one of"):
        from_dict(SelectorConfig, {"policy": "beta"})


def test_a_distilled_network_answers_early_with_both_classifiers():
    """Early logits cost 28 channels x 5 classes for each class token, at most."""
    for distilled, class_tokens in ((False, 1), (True, 2)):
        spec = make_spec(distilled=distilled)
        selector = Selector(spec, make().config, SPACE.first_group("max"))
        actor = mlp_macs(selector.encoder.size, (8,), selector.ppo.distribution.outputs)
        assert selector.decision_cost == actor + class_tokens * 28 * 5
