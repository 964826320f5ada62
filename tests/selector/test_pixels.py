"""The decision process of a network that says a class for every pixel: the same process, quality pixel by pixel."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import KEEP, PAIR, drawn_params, make_spec, quick_jit

from prance_jax.config.stages import SelectorConfig
from prance_jax.core import losses
from prance_jax.models import forward
from prance_jax.models.vit import ViT
from prance_jax.selector.environment import EnvParams
from prance_jax.selector.observation import mlp_macs
from prance_jax.selector.reward import RewardConfig, prediction_quality
from prance_jax.spec.macs import macs
from prance_jax.spec.structure import Structure
from prance_jax.training.stages.selector import Selector

CHANCES = np.array([[0.7, 0.3], [0.2, 0.8], [0.6, 0.4], [0.9, 0.1]])
FULL = np.array([[0.9, 0.1], [0.9, 0.1], [0.1, 0.9], [0.9, 0.1]])


def pixels(values):
    """Two images of two by one pixels."""
    return jnp.asarray(values.reshape(2, 2, 1, *values.shape[1:]))


def test_quality_of_pixels_by_hand():
    """The full network is right, right, wrong and right; an image's quality is the mean of its two pixels'."""
    logits, full = jnp.log(pixels(CHANCES)), jnp.log(pixels(FULL))
    score = lambda **own: prediction_quality(
        RewardConfig(**own), logits, jnp.zeros((2, 2, 1), jnp.int32), full
    )
    np.testing.assert_allclose(score(quality="correct"), [(1 + 0) / 2, (1 + 1) / 2])
    np.testing.assert_allclose(
        score(quality="probability", reward_mending=True), [(0.7 + 0.2) / 2, (0.6 + 0.9) / 2], rtol=1e-5
    )
    apart = (FULL * np.log(FULL / CHANCES)).sum(-1)
    assert apart[1] > 1
    found = score(quality="agreement", agreement_floor=1.0)
    np.testing.assert_allclose(found, [-(apart[0] + 1) / 2, -(apart[2] + apart[3]) / 2], rtol=1e-4)


def test_losses_of_pixels_by_hand():
    logits, labels = jnp.log(pixels(CHANCES)), jnp.array([[[0], [1]], [[1], [0]]])
    right = np.array([0.7, 0.8, 0.4, 0.9])
    np.testing.assert_allclose(losses.cross_entropy(logits, labels), -np.log(right).mean(), rtol=1e-5)
    apart = (FULL * np.log(FULL / CHANCES)).sum(-1).mean()
    np.testing.assert_allclose(losses.kl_divergence(logits, jnp.log(pixels(FULL))), apart, rtol=1e-5)
    assert losses.accuracy(logits, labels) == pytest.approx(3 / 4)


def test_the_reward_is_what_a_whole_run_would_say(images):
    spec = make_spec("tome", space=PAIR, pixels=True, num_classes=3)
    reward = RewardConfig(quality="agreement", agreement_floor=0.5, keep_weight=0.0)
    config = SelectorConfig(updates=1, batch=6, state="lean", keep_choices=KEEP, hidden=(8,), reward=reward)
    chosen, model = Selector(spec, config, PAIR.first_group("max")), ViT(spec)
    env, params = chosen.env, drawn_params(spec)
    # 17 tokens at most are looked at, of 28 channels, for 3 classes.
    outputs = chosen.ppo.distribution.outputs
    assert chosen.decision_cost == mlp_macs(chosen.encoder.size, (8,), outputs) + 17 * 28 * 3
    labels = jnp.broadcast_to(jnp.arange(16) % 3, (6, 16, 16))
    action = jnp.array([[0, 0, 0], [1, 2, 1], [2, 1, 2], [0, 2, 3], [2, 0, 1], [1, 1, 1]])

    def both(params, images):
        full = model.apply({"params": params}, images, spec.largest)
        env_params = EnvParams(params, images, labels, full, jnp.float32(0.3))
        env_state, observation = env.reset(env_params, jax.random.key(3))
        env_state, _, found, info = env.step(env_params, 0, env_state, action)
        drawn = jax.random.randint(jax.random.key(3), (6,), 0, 6)
        structure = Structure(env_state.chosen)
        said = forward.forward_adaptive(
            model, params, images[drawn], chosen.first_choice, forward.fixed_decisions(structure)
        ).logits
        share = macs(spec, structure, chosen.decision_cost).total / macs(spec, spec.largest).total
        return found, said, full[drawn], share, observation, info["correct"]

    found, said, full, share, observation, correct = quick_jit(both)(params, images)
    own, wanted = (jax.nn.log_softmax(np.asarray(x, np.float64)) for x in (said, full))
    apart = np.minimum(np.sum(np.exp(wanted) * (wanted - own), -1), 0.5).mean((1, 2))
    np.testing.assert_allclose(found, -apart - 0.3 * share, rtol=1e-4)
    np.testing.assert_allclose(correct, (np.argmax(said, -1) == labels).mean((1, 2)), rtol=1e-5)
    assert observation.shape == (6, chosen.encoder.size) and len(set(np.asarray(apart).round(6))) == 6
