"""The decision process of a segmentation network: the same process, with quality pixel by pixel."""

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

PROBABILITIES = np.array([[0.7, 0.3], [0.2, 0.8], [0.6, 0.4], [0.9, 0.1]])
FULL = np.array([[0.9, 0.1], [0.9, 0.1], [0.1, 0.9], [0.9, 0.1]])


def pixels(values):
    """Two images of two by one pixels."""
    return jnp.asarray(values.reshape(2, 2, 1, *values.shape[1:]))


def test_quality_of_pixels_by_hand():
    """The full network is right, right, wrong, right; quality is the mean of an image's two pixels."""
    logits, full = jnp.log(pixels(PROBABILITIES)), jnp.log(pixels(FULL))
    score = lambda **settings: prediction_quality(
        RewardConfig(**settings), logits, jnp.zeros((2, 2, 1), jnp.int32), full
    )
    np.testing.assert_allclose(score(quality="correct"), [(1 + 0) / 2, (1 + 1) / 2])
    np.testing.assert_allclose(
        score(quality="probability", reward_mending=True), [(0.7 + 0.2) / 2, (0.6 + 0.9) / 2], rtol=1e-5
    )
    kl = (FULL * np.log(FULL / PROBABILITIES)).sum(-1)
    assert kl[1] > 1
    agreement = score(quality="agreement", agreement_floor=1.0)
    np.testing.assert_allclose(agreement, [-(kl[0] + 1) / 2, -(kl[2] + kl[3]) / 2], rtol=1e-4)


def test_losses_of_pixels_by_hand():
    logits, labels = jnp.log(pixels(PROBABILITIES)), jnp.array([[[0], [1]], [[1], [0]]])
    probabilities = np.array([0.7, 0.8, 0.4, 0.9])
    np.testing.assert_allclose(losses.cross_entropy(logits, labels), -np.log(probabilities).mean(), rtol=1e-5)
    kl = (FULL * np.log(FULL / PROBABILITIES)).sum(-1).mean()
    np.testing.assert_allclose(losses.kl_divergence(logits, jnp.log(pixels(FULL))), kl, rtol=1e-5)
    assert losses.accuracy(logits, labels) == pytest.approx(3 / 4)


def test_the_reward_is_that_of_an_unbroken_run(images):
    spec = make_spec("tome", space=PAIR, pixels=True, num_classes=3)
    reward = RewardConfig(quality="agreement", agreement_floor=0.5, keep_weight=0.0)
    config = SelectorConfig(updates=1, batch=6, state="lean", keep_choices=KEEP, hidden=(8,), reward=reward)
    selector, model = Selector(spec, config, PAIR.first_group("max")), ViT(spec)
    env, params = selector.env, drawn_params(spec)
    # Early logits: at most 17 tokens of 28 channels, for 3 classes.
    outputs = selector.ppo.distribution.outputs
    assert selector.decision_cost == mlp_macs(selector.encoder.size, (8,), outputs) + 17 * 28 * 3
    labels = jnp.broadcast_to(jnp.arange(16) % 3, (6, 16, 16))
    action = jnp.array([[0, 0, 0], [1, 2, 1], [2, 1, 2], [0, 2, 3], [2, 0, 1], [1, 1, 1]])

    def run(params, images):
        full = model.apply({"params": params}, images, spec.largest)
        env_params = EnvParams(params, images, labels, full, jnp.float32(0.3))
        key = jax.random.key(3)
        observation, env_state = env.reset(key, env_params)
        _, env_state, reward, _, info = env.step(key, env_state, action, env_params)
        indices = jax.random.randint(key, (6,), 0, 6)
        structure = Structure(env_state.choices)
        logits = forward.forward_adaptive(
            model, params, images[indices], selector.first_choice, forward.fixed_decisions(structure)
        ).logits
        share = macs(spec, structure, selector.decision_cost).total / macs(spec, spec.largest).total
        return reward, logits, full[indices], share, observation, info["correct"]

    reward, logits, full, share, observation, correct = quick_jit(run)(params, images)
    log_prob, log_full = (jax.nn.log_softmax(np.asarray(x, np.float64)) for x in (logits, full))
    kl = np.minimum(np.sum(np.exp(log_full) * (log_full - log_prob), -1), 0.5).mean((1, 2))
    np.testing.assert_allclose(reward, -kl - 0.3 * share, rtol=1e-4)
    np.testing.assert_allclose(correct, (np.argmax(logits, -1) == labels).mean((1, 2)), rtol=1e-5)
    assert observation.shape == (6, selector.encoder.size) and len(set(np.asarray(kl).round(6))) == 6
