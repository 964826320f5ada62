"""Accumulated gradients and rematerialisation give the same update."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import make_spec, noisy_params

from prance_jax.config.stages import OptimizerConfig
from prance_jax.models.vit import ViT
from prance_jax.training import optimizer


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_two_halves_are_one_batch(name):
    """Steps 2 and 3 with half the rows each are one update with all of them."""
    rows = jax.random.normal(jax.random.key(0), (8, 5))
    params = {"kernel": jax.random.normal(jax.random.key(1), (5, 4)), "bias": jnp.ones(4)}
    config = OptimizerConfig(name=name, warmup=0, learning_rate=0.1, accumulate=2)

    def train(config, batches):
        transform = optimizer.make_optimizer(config, len(batches))
        state = optimizer.init_state(params, transform)
        for step, batch in enumerate(batches):
            loss = lambda params, batch=batch: (
                jnp.mean(jnp.tanh(batch @ params["kernel"] + params["bias"])),
                {},
            )
            state, _ = optimizer.update_state(state, jnp.int32(step), loss, transform, 0.9)
        return state["params"]

    halves = train(config, [rows[:4], rows[4:], rows[4:], rows[:4]])
    whole = train(dataclasses.replace(config, accumulate=1), [rows, rows])
    for actual, expected in zip(jax.tree.leaves(halves), jax.tree.leaves(whole)):
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-6)


def test_rematerialisation_changes_memory_not_gradients(images):
    spec = make_spec("prune")
    params = noisy_params(spec)
    grads, sizes = [], []
    for remat in (False, True):
        model = ViT(dataclasses.replace(spec, remat=remat))
        loss = lambda p: jnp.sum(model.apply({"params": p}, images, spec.largest) ** 2)
        grads.append(jax.jit(jax.grad(loss))(params))
        # Arrays that the forward pass stores for the backward pass.
        pullback = jax.eval_shape(lambda p: jax.vjp(loss, p)[1], params)
        sizes.append(sum(leaf.size for leaf in jax.tree.leaves(pullback)))
    for actual, expected in zip(*map(jax.tree.leaves, grads)):
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5 * float(jnp.abs(expected).max()))
    assert sizes[1] < 0.8 * sizes[0]
