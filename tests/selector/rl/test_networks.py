"""Actor and critic: official names, initial gains, and the numbers they compute."""

import jax
import jax.numpy as jnp
import numpy as np

from prance_jax.selector.rl.networks import Actor, Critic


def test_networks_carry_the_official_names_and_gains():
    actor = Actor(7, (32, 32)).init(jax.random.key(0), jnp.zeros((1, 65)))["params"]
    critic = Critic((32, 32)).init(jax.random.key(0), jnp.zeros((1, 65)))["params"]
    assert set(actor) == {"fc1", "fc2", "fc_mu"} and set(critic) == {"fc1", "fc2", "fc3"}
    for params, last, gain in ((actor, "fc_mu", 0.01), (critic, "fc3", 1.0)):
        kernel = np.asarray(params["fc2"]["kernel"])
        np.testing.assert_allclose(kernel @ kernel.T, 2 * np.eye(32), atol=1e-4)
        kernel = np.asarray(params[last]["kernel"])
        np.testing.assert_allclose(kernel.T @ kernel, gain**2 * np.eye(kernel.shape[1]), rtol=1e-4, atol=1e-7)
        assert all(not np.any(layer["bias"]) for layer in params.values())


def test_networks_compute_two_rectified_layers_and_a_linear_one():
    """By NumPy, on weights and biases of which none is zero; the actor's output is raw, no tanh."""
    x = np.random.default_rng(0).normal(size=(5, 6)).astype(np.float32)
    for network, last in ((Actor(3, (8, 4)), "fc_mu"), (Critic((8, 4)), "fc3")):
        params = network.init(jax.random.key(1), x)["params"]
        params = jax.tree.map(lambda leaf: leaf + 0.1, params)
        expected = x
        for name in ("fc1", "fc2", last):
            expected = expected @ np.asarray(params[name]["kernel"]) + np.asarray(params[name]["bias"])
            expected = expected if name == last else np.maximum(expected, 0)
        expected = expected if last == "fc_mu" else expected[:, 0]
        result = network.apply({"params": params}, x)
        assert result.shape == expected.shape
        np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-5)


def test_the_first_policy_hardly_depends_on_the_observation():
    """The small last gain: every image starts with nearly the same distribution over choices."""
    observations = jax.random.normal(jax.random.key(2), (32, 65))
    actor, critic = Actor(7, (32, 32)), Critic((32, 32))
    output = actor.apply(actor.init(jax.random.key(0), observations), observations)
    assert float(jnp.abs(output).max()) < 0.1
    value = critic.apply(critic.init(jax.random.key(0), observations), observations)
    assert float(value.std()) > 0.1
