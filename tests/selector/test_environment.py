"""The decision process: actions, rewards by hand, Result-to-Go, and how much of the network an episode runs."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import KEEP, SPACE, make_spec

from prance_jax.config.stages import SelectorConfig
from prance_jax.core.errors import UserError
from prance_jax.models import forward
from prance_jax.models.vit import ViT
from prance_jax.selector import environment as process_module
from prance_jax.selector.actions import ActionSpace
from prance_jax.selector.environment import EnvParams
from prance_jax.selector.observation import ObservationEncoder, mlp_macs
from prance_jax.selector.policies import RandomPolicy
from prance_jax.selector.reward import (
    RewardConfig,
    compute_reward,
    prediction_quality,
    update_cost_weight,
    utility,
)
from prance_jax.spec.macs import macs
from prance_jax.spec.structure import Structure
from prance_jax.training.stages.selector import Selector, _pool_batch


def selector(mode="prune", **changes):
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
    drawn, labels, logits = _pool_batch(spec, lambda tables, key, batch: (images, jnp.arange(6)), 6)(
        params, (), jax.random.key(0)
    )
    assert drawn.dtype == jnp.bfloat16 and drawn.nbytes * 2 == images.nbytes
    read = lambda own: ViT(spec).apply({"params": params}, own, spec.largest)
    np.testing.assert_array_equal(read(drawn), read(images))
    assert logits.dtype == jnp.float32


def test_lattice_actions_by_hand():
    actions = ActionSpace(SPACE, 2, (KEEP, KEEP))
    assert actions.sizes == (3, 3, 3, 3, 4, 4) and actions.components == 6
    choice = actions.decode(jnp.array([[0, 2, 1, 2, 0, 3]]), 1)
    assert [int(x[0]) for x in choice.widths] == [24, 28]
    assert [int(x[0]) for x in choice.mlp_dims] == [24, 28 * 3]
    np.testing.assert_allclose([float(x[0]) for x in choice.keep], [0.3, 1.0])


def test_continuous_actions_round_halves_to_even_and_clip():
    actions = ActionSpace(SPACE, 1)
    # round(0.25 x 2) = round(0.5) = 0, round(0.75 x 2) = round(1.5) = 2; outside [0, 1] is clipped.
    choice = actions.decode(jnp.array([[0.25, 0.75, -3.0, 9.0, 0.123]]), 2)
    assert [int(x[0]) for x in choice.widths] == [16, 28]
    assert [int(x[0]) for x in choice.mlp_dims] == [16, 28 * 3]
    np.testing.assert_allclose(float(choice.keep[0][0]), 0.123, rtol=1e-6)


@pytest.mark.parametrize(
    "choices", [((0.0, 0.5),), ((0.5, float("nan")),), ((),), ((0.5,), (0.5,)), ((0.8, 0.5),)]
)
def test_a_lattice_of_impossible_rates_is_refused(choices):
    with pytest.raises(UserError, match="keep"):
        ActionSpace(SPACE, 1, choices)


def test_quality_by_hand():
    logits = jnp.log(jnp.array([[0.7, 0.3], [0.2, 0.8], [0.6, 0.4]]))
    full = jnp.log(jnp.array([[0.9, 0.1], [0.9, 0.1], [0.1, 0.9]]))
    labels = jnp.array([0, 0, 0])  # the full network is right, right, wrong
    score = lambda **config: np.asarray(prediction_quality(RewardConfig(**config), logits, labels, full))
    np.testing.assert_allclose(score(quality="correct"), [1, 0, 1])
    np.testing.assert_allclose(score(quality="probability"), [0.7, 0.2, 1], rtol=1e-5)
    np.testing.assert_allclose(score(quality="probability", reward_mending=True), [0.7, 0.2, 0.6], rtol=1e-5)
    first = -(0.9 * np.log(0.9 / 0.7) + 0.1 * np.log(0.1 / 0.3))
    second = -(0.9 * np.log(0.9 / 0.2) + 0.1 * np.log(0.1 / 0.8))
    third = -(0.1 * np.log(0.1 / 0.6) + 0.9 * np.log(0.9 / 0.4))
    np.testing.assert_allclose(
        score(quality="agreement", agreement_floor=1.0), [first, -1.0, third], rtol=1e-4
    )
    assert second < -1.0


def test_reward_and_price_by_hand():
    now = utility(jnp.array([1.0]), jnp.array([0.5]), jnp.float32(0.2))
    keep, before = (jnp.array([0.4]), jnp.array([0.5])), jnp.array([0.7])
    np.testing.assert_allclose(
        compute_reward(RewardConfig(keep_weight=0.1), now, before, keep), 1 - 0.2 * 0.5 - 0.1 * 0.9, rtol=1e-6
    )
    marginal = RewardConfig(keep_weight=0.0, marginal=True)
    np.testing.assert_allclose(compute_reward(marginal, now, before, keep), 1 - 0.2 * 0.5 - 0.7, rtol=1e-5)
    dual = RewardConfig(target_macs=0.4, cost_weight_rate=0.5)
    np.testing.assert_allclose(
        update_cost_weight(dual, jnp.float32(0.2), jnp.float32(0.6)), 0.2 * np.exp(0.1), rtol=1e-6
    )
    assert float(update_cost_weight(RewardConfig(), jnp.float32(0.2), jnp.float32(0.6))) == pytest.approx(0.2)


def test_result_to_go_is_what_a_whole_run_would_say(env_params):
    """Each decision's reward equals that of an unbroken run with later groups at their default."""
    chosen, env = selector(), selector().env
    env_state, observation = env.reset(env_params, jax.random.key(3))
    drawn = jax.random.randint(jax.random.key(3), (6,), 0, 6)
    images, labels, spec = env_params.images[drawn], env_params.labels[drawn], chosen.spec
    policy = RandomPolicy(chosen.first_choice, chosen.lattice)
    assert observation.shape == (6, chosen.encoder.size)
    for t in range(3):
        action = policy.draw(0.0, jax.random.key(10 + t), 6)
        env_state, observation, found, info = env.step(env_params, t, env_state, action)
        structure = Structure(env_state.chosen + spec.largest.groups[t + 2 :])
        logits = forward.forward_adaptive(
            ViT(spec), env_params.params, images, chosen.first_choice, forward.fixed_decisions(structure)
        ).logits
        correct = np.asarray(jnp.argmax(logits, -1) == labels)
        forgiven = np.asarray(jnp.argmax(env_params.full_logits[drawn], -1) != labels)
        share = np.asarray(macs(spec, structure, chosen.decision_cost).total) / macs(spec, spec.largest).total
        keep = np.asarray(env_state.chosen[-1].keep[0])
        np.testing.assert_allclose(found, (correct | forgiven) - 0.3 * share - 0.1 * keep, rtol=1e-4)
        np.testing.assert_allclose(info["macs_kept"], share, rtol=1e-5)


def test_an_episode_takes_seven_group_evaluations(env_params, monkeypatch):
    """1 + 3 + 2 + 1, not 4 x 4: the prefix before a decision is kept."""
    counted = []

    def counting(name, function):
        def call(*arguments):
            counted.append(name)
            return function(*arguments)

        return call

    monkeypatch.setattr(process_module, "forward_first_group", counting("group", forward.forward_first_group))
    forward_group = counting("group", forward.forward_group)
    monkeypatch.setattr(process_module, "forward_group", forward_group)
    monkeypatch.setattr(forward, "forward_group", forward_group)
    chosen = selector()
    ppo, env = chosen.ppo, chosen.env
    jax.eval_shape(lambda: ppo.rollout(ppo.init(jax.random.key(0)), env, env_params, jax.random.key(1)))
    assert len(counted) == 7


@pytest.mark.parametrize("kind, size", [("keys", 17), ("lean", 6 + 3), ("rich", 2 * 17 + 28 + 6 + 3)])
def test_observations_do_not_see_dropped_tokens(kind, size, env_params):
    spec = make_spec()
    encoder = ObservationEncoder(spec, kind)
    state = forward.forward_first_group(
        ViT(spec), env_params.params, env_params.images, SPACE.first_group("max")
    )
    choice = (
        RandomPolicy(SPACE.first_group("max"), ActionSpace(SPACE, 1, (KEEP,)))
        .structure(0.0, jax.random.key(0), 6)
        .groups[1]
    )
    state = forward.forward_group(ViT(spec), env_params.params, state, choice, 1)
    tokens = state.tokens
    noise = jnp.where(tokens.valid[:, :, None], tokens.features, 1e6)
    keys = jnp.where(tokens.valid[:, :, None], state.signals.keys, 1e6)
    poisoned = state._replace(
        tokens=tokens._replace(features=noise), signals=state.signals._replace(keys=keys)
    )
    seen = encoder(state, 2)
    assert seen.shape == (6, size) == (6, encoder.size)
    np.testing.assert_array_equal(encoder(poisoned, 2), seen)
    if kind != "lean":
        means = np.asarray(state.signals.keys).mean(-1) * np.asarray(tokens.valid)
        np.testing.assert_allclose(seen[:, :17], means, rtol=1e-5, atol=1e-6)


def test_the_lean_state_by_hand(env_params):
    """Shares of tokens and width, how sharp attention is, how sure the classifier is, and which decision this is."""
    spec = make_spec()
    state = forward.forward_first_group(
        ViT(spec), env_params.params, env_params.images, SPACE.first_group("24x2")
    )
    state = state._replace(early_logits=jnp.log(jnp.array([[0.5, 0.3, 0.1, 0.05, 0.05]] * 6)))
    seen = np.asarray(ObservationEncoder(spec, "lean")(state, 3))
    attention = np.asarray(state.signals.cls_attention, np.float64)
    entropy = -(0.5 * np.log(0.5) + 0.3 * np.log(0.3) + 0.1 * np.log(0.1) + 0.1 * np.log(0.05)) / np.log(5)
    for image in range(6):
        sharp = 17 * (attention[image] ** 2).sum()
        wanted = [1.0, sharp, 24 / 28, 0.5, 0.2, entropy, 0, 0, 1]
        np.testing.assert_allclose(seen[image], wanted, rtol=1e-4)


def test_the_glance_is_the_classifier_on_the_class_token_as_it_is(env_params):
    spec = make_spec()
    state = forward.forward_first_group(
        ViT(spec), env_params.params, env_params.images, SPACE.first_group("24x2")
    )
    cls = np.asarray(state.tokens.features)[:, 0, :24].astype(np.float64)
    norm, head = (jax.tree.map(np.asarray, env_params.params[name]) for name in ("norm", "head"))
    cls = (cls - cls.mean(-1, keepdims=True)) / np.sqrt(cls.var(-1, keepdims=True) + spec.norm_epsilon)
    wanted = (cls * norm["scale"][:24] + norm["bias"][:24]) @ head["kernel"][:24] + head["bias"]
    np.testing.assert_allclose(state.early_logits, wanted, rtol=1e-4, atol=1e-4)


def test_a_selector_of_every_budget_sees_and_pays_its_own_price(env_params):
    """The observation ends with asinh(price / 0.01); rewards are (quality - price x MACs) / sqrt(|price| + 0.01), image
    by image, also where the price is below zero."""
    env = selector(cost_weights=(-0.05, 0.8)).env
    drawn = env_params._replace(cost_weight=(jnp.float32(-0.05), jnp.float32(0.8)))
    env_state, observation = env.reset(drawn, jax.random.key(3))
    cost_weight = 0.01 * np.sinh(np.asarray(observation)[:, -1])
    np.testing.assert_allclose(cost_weight, env_state.cost_weight, rtol=1e-5)
    assert -0.05 <= cost_weight.min() < 0 and cost_weight.max() <= 0.8 and len(set(cost_weight)) == 6
    action = jnp.zeros((6, env.actions.components), jnp.int32)
    _, following, rewards, info = env.step(drawn, 0, env_state, action)
    np.testing.assert_array_equal(following[:, -1], observation[:, -1])
    free = np.asarray(env.step(drawn, 0, env_state._replace(cost_weight=jnp.zeros(6)), action)[2]) * np.sqrt(
        0.01
    )
    costs = free - np.asarray(rewards) * np.sqrt(np.abs(cost_weight) + 0.01)
    np.testing.assert_allclose(costs, cost_weight * np.asarray(info["macs_kept"]), rtol=1e-4, atol=1e-6)
    with pytest.raises(UserError, match="needs the price"):
        env.encoder(env_state.state, 1)


def test_a_measured_cost_takes_the_place_of_macs(env_params):
    """A quarter of the dense network's time, whatever is chosen: rewards are quality - price x 0.25."""
    env = dataclasses.replace(selector().env, cost=lambda structure: jnp.full(6, 0.25))
    env_state, _ = env.reset(env_params, jax.random.key(3))
    action = jnp.zeros((6, env.actions.components), jnp.int32)
    following, _, _, info = env.step(env_params, 0, env_state, action)
    free, *_ = env.step(env_params, 0, env_state._replace(cost_weight=jnp.zeros(6)), action)
    np.testing.assert_allclose(free.utility - following.utility, 0.25 * env_state.cost_weight, rtol=1e-5)
    assert (info["cost"] == 0.25).all() and (info["macs_kept"] != 0.25).all()


def test_the_papers_selector_costs_118_thousand_macs():
    assert mlp_macs(197, (256, 256), 7) == 197 * 256 + 256 * 256 + 256 * 7
    assert mlp_macs(197, (256, 256), 7) == pytest.approx(118_000, rel=0.01)


def test_random_rule_meets_a_budget():
    spec = make_spec()
    policy = RandomPolicy(SPACE.first_group("min"), ActionSpace(SPACE, 1, (KEEP,)))
    for target in (0.3, 0.5):
        size_bias = policy.size_bias_for(spec, target)
        drawn = policy.structure(size_bias, jax.random.key(7), 8192)
        share = float(jnp.mean(macs(spec, drawn).total)) / macs(spec, spec.largest).total
        assert share == pytest.approx(target, abs=0.01)


def test_unknown_names_are_told():
    with pytest.raises(UserError, match="selector state 'key' is not known"):
        ObservationEncoder(make_spec(), "key")
    with pytest.raises(UserError, match="reward quality 'accuracy' is not known"):
        RewardConfig(quality="accuracy")
    with pytest.raises(UserError, match="target_macs=1.5 is not a share"):
        RewardConfig(target_macs=1.5)
    with pytest.raises(UserError, match="policy 'beta' is not known"):
        dataclasses.replace(selector().config, policy="beta")
