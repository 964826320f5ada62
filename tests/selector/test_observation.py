"""Observations: by hand, and independent of dropped tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import KEEP, SPACE, make_spec

from prance_jax.core.errors import UserError
from prance_jax.models import forward
from prance_jax.models.vit import ViT
from prance_jax.selector.actions import ActionSpace
from prance_jax.selector.observation import ObservationEncoder, mlp_macs
from prance_jax.selector.policies import RandomPolicy


@pytest.mark.parametrize("kind, size", [("keys", 17), ("lean", 6 + 3), ("rich", 2 * 17 + 28 + 6 + 3)])
def test_observations_do_not_see_dropped_tokens(kind, size, params, images):
    spec = make_spec()
    encoder = ObservationEncoder(spec, kind)
    state = forward.forward_first_group(ViT(spec), params, images, SPACE.first_group("max"))
    choice = (
        RandomPolicy(SPACE.first_group("max"), ActionSpace(SPACE, 1, (KEEP,)))
        .sample_structure(0.0, jax.random.key(0), 6)
        .groups[1]
    )
    state = forward.forward_group(ViT(spec), params, state, choice, 1)
    tokens = state.tokens
    noise = jnp.where(tokens.valid[:, :, None], tokens.features, 1e6)
    keys = jnp.where(tokens.valid[:, :, None], state.signals.keys, 1e6)
    poisoned = state._replace(
        tokens=tokens._replace(features=noise), signals=state.signals._replace(keys=keys)
    )
    observation = encoder(state, 2)
    assert observation.shape == (6, size) == (6, encoder.size)
    np.testing.assert_array_equal(encoder(poisoned, 2), observation)
    if kind != "lean":
        means = np.asarray(state.signals.keys).mean(-1) * np.asarray(tokens.valid)
        np.testing.assert_allclose(observation[:, :17], means, rtol=1e-5, atol=1e-6)


def test_the_lean_state_by_hand(params, images):
    """Shares of tokens and width, attention sharpness, confidence of the classifier, and the decision."""
    spec = make_spec()
    state = forward.forward_first_group(ViT(spec), params, images, SPACE.first_group("24x2"))
    state = state._replace(early_logits=jnp.log(jnp.array([[0.5, 0.3, 0.1, 0.05, 0.05]] * 6)))
    observation = np.asarray(ObservationEncoder(spec, "lean")(state, 3))
    attention = np.asarray(state.signals.cls_attention, np.float64)
    entropy = -(0.5 * np.log(0.5) + 0.3 * np.log(0.3) + 0.1 * np.log(0.1) + 0.1 * np.log(0.05)) / np.log(5)
    for image in range(6):
        sharpness = 17 * (attention[image] ** 2).sum()
        expected = [1.0, sharpness, 24 / 28, 0.5, 0.2, entropy, 0, 0, 1]
        np.testing.assert_allclose(observation[image], expected, rtol=1e-4)


def test_early_logits_are_the_classifier_on_the_class_token_as_it_is(params, images):
    spec = make_spec()
    state = forward.forward_first_group(ViT(spec), params, images, SPACE.first_group("24x2"))
    cls = np.asarray(state.tokens.features)[:, 0, :24].astype(np.float64)
    norm, head = (jax.tree.map(np.asarray, params[name]) for name in ("norm", "head"))
    cls = (cls - cls.mean(-1, keepdims=True)) / np.sqrt(cls.var(-1, keepdims=True) + spec.norm_epsilon)
    expected = (cls * norm["scale"][:24] + norm["bias"][:24]) @ head["kernel"][:24] + head["bias"]
    np.testing.assert_allclose(state.early_logits, expected, rtol=1e-4, atol=1e-4)


def test_the_papers_selector_costs_118_thousand_macs():
    assert mlp_macs(197, (256, 256), 7) == 197 * 256 + 256 * 256 + 256 * 7
    assert mlp_macs(197, (256, 256), 7) == pytest.approx(118_000, rel=0.01)


def test_an_unknown_kind_is_refused():
    with pytest.raises(UserError, match="selector state 'key' is not known"):
        ObservationEncoder(make_spec(), "key")
