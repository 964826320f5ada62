"""Parity with stored outputs of the official network: decisions, token counts, logits to 1e-4 relative."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import compact

from prance_jax.core.errors import UserError
from prance_jax.models import forward
from prance_jax.models.vit import ViT
from prance_jax.selector.actions import ActionSpace
from prance_jax.selector.observation import ObservationEncoder
from prance_jax.selector.policies import SelectorPolicy
from prance_jax.selector.rl.distributions import Gaussian
from prance_jax.selector.rl.ppo import PPO
from prance_jax.selector.rl.types import PolicyParams, PPOConfig
from prance_jax.spec.model_spec import ModelSpec
from prance_jax.spec.search_space import SearchSpace
from prance_jax.spec.token_counts import tokens_after_layers
from prance_jax.zoo.formats import released_prance

SPACE = SearchSpace("golden", 112, 4, 1, (64, 80, 88, 96), (2, 3, 4))


def part(arrays, prefix):
    return {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}


def load(arrays, mode):
    spec = ModelSpec(SPACE, image_size=64, patch_size=8, num_classes=10, token_optimization=mode).official()
    actions, encoder = ActionSpace(SPACE, spec.rates), ObservationEncoder(spec, "keys")
    ppo = PPO(
        PPOConfig(normalise_observation=False), Gaussian(actions.components), encoder.size, (256, 256), 1
    )
    fresh = ppo.init(jax.random.key(0))
    params = released_prance.meta_network(
        part(arrays, "model/"), spec, forward.init_params(ViT(spec), jax.random.key(0))
    )
    actor = released_prance.selector_params(part(arrays, "actor/"), fresh.policy.actor, "actor")
    released_prance.selector_params(part(arrays, "critic/"), fresh.critic, "critic")
    policy = SelectorPolicy(SPACE.first_group("max"), actions, encoder, ppo)
    images = jnp.asarray(arrays["images_nchw"].astype(np.float32).transpose(0, 2, 3, 1))
    return spec, params, policy, PolicyParams(actor, fresh.policy.normaliser), images


@pytest.mark.parametrize("mode", ["prune", "merge"])
def test_official_network(mode, golden):
    arrays = golden(mode)
    spec, params, policy, policy_params, images = load(arrays, mode)
    decide = lambda policy_params: policy.decide(policy_params, jax.random.key(0))
    run = jax.jit(
        lambda params, policy_params, x: forward.forward_adaptive(
            ViT(spec), params, x, policy.first_choice, decide(policy_params)
        )
    )
    outcome = run(params, policy_params, images)
    np.testing.assert_allclose(
        outcome.logits, arrays["logits"], rtol=0, atol=1e-4 * np.abs(arrays["logits"]).max()
    )
    for index in range(len(images)):
        structure = outcome.structure.image(index)
        assert structure.widths == tuple(arrays["embed_dim"][index])
        ratios = [mlp_dim / width for mlp_dim, width in zip(structure.mlp_dims, structure.widths)]
        np.testing.assert_array_equal(ratios, arrays["mlp_ratio"][index])
        assert tokens_after_layers(spec, structure) == tuple(arrays["tokens_after"][index])
    # One image under a static structure, compact, as the official code runs it.
    logits = compact(spec, params, images[:1], outcome.structure.image(0)).logits
    np.testing.assert_allclose(
        logits[0], arrays["logits"][0], rtol=0, atol=1e-4 * np.abs(arrays["logits"]).max()
    )


def test_import_lists_all_mismatches(golden):
    arrays = part(golden("prune"), "model/")
    spec = ModelSpec(SPACE, image_size=64, patch_size=8, num_classes=10).official()
    initial = forward.init_params(ViT(spec), jax.random.key(0))
    arrays["stranger.weight"] = np.zeros(3)
    arrays["head.bias"] = np.zeros(11)
    del arrays["cls_token"]
    with pytest.raises(UserError) as caught:
        released_prance.meta_network(arrays, spec, initial)
    for words in (
        "missing cls_token (112,)",
        "not used: stranger.weight (3,)",
        "head/bias: wanted (10,), found (11,)",
    ):
        assert words in str(caught.value)
