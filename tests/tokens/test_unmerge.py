"""Every patch gets its token back, or what stands for it."""

import jax.numpy as jnp
import numpy as np
import pytest

from prance_jax.tokens.methods.registry import METHODS
from prance_jax.tokens.token_set import AttentionSignals, TokenSet, initial_tokens
from prance_jax.tokens.unmerge import last_features, unmerge

SIDE, BATCH = 4, 3
PATCHES = SIDE**2


def example(seed=0):
    rng = np.random.default_rng(seed)
    tokens = initial_tokens(jnp.asarray(rng.normal(size=(BATCH, 1 + PATCHES, 5)), jnp.float32))
    attention = jnp.asarray(rng.dirichlet(np.ones(1 + PATCHES), BATCH), jnp.float32)
    keys = jnp.asarray(rng.normal(size=(BATCH, 1 + PATCHES, 4)), jnp.float32)
    return tokens, AttentionSignals(attention, keys, attention, attention)


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.rates == 1])
def test_every_patch_gets_the_token_that_carries_it(name):
    tokens, signals = example()
    np.testing.assert_array_equal(unmerge(tokens), tokens.features[:, 1:])
    method = METHODS[name]
    found = method.reduce(tokens, signals, method.possible(17, 9, PATCHES))
    grid, token_of_patch = np.asarray(unmerge(found)), np.asarray(found.token_of_patch)
    new_index = np.array([divmod(p, SIDE) for p in range(PATCHES)])
    for image in range(BATCH):
        carried = np.flatnonzero(token_of_patch[image] >= 0)
        for patch in range(PATCHES):
            nearest = min(carried, key=lambda p: (((new_index[p] - new_index[patch]) ** 2).sum(), p))
            np.testing.assert_array_equal(
                grid[image, patch], found.features[image, token_of_patch[image, nearest]]
            )


def test_what_was_dropped_may_be_zero_or_as_it_was():
    tokens, signals = example(1)
    once = METHODS["prune"].reduce(tokens, signals, 9)
    later = once._replace(features=2 * once.features)
    again = METHODS["prune"].reduce(later, AttentionSignals(*[x[:, :9] for x in signals]), 4)
    last = last_features(jnp.zeros((BATCH, PATCHES, 5)), tokens, once)
    last = last_features(last, later, again)
    whole, zeros = np.asarray(unmerge(again, last=last)), np.asarray(unmerge(again, "zero"))
    for image in range(BATCH):
        for patch in range(PATCHES):
            own = np.asarray(tokens.features[image, 1 + patch])
            if again.token_of_patch[image, patch] >= 0 or once.token_of_patch[image, patch] >= 0:
                np.testing.assert_array_equal(whole[image, patch], 2 * own)
            else:
                np.testing.assert_array_equal(whole[image, patch], own)
            if again.token_of_patch[image, patch] < 0:
                assert not zeros[image, patch].any()


def test_with_nothing_left_but_cls():
    features = jnp.arange(6.0).reshape(1, 2, 3)
    tokens = TokenSet(features[:, :1], None, None, jnp.full((1, 4), -1))
    np.testing.assert_array_equal(unmerge(tokens), np.broadcast_to(features[:, :1], (1, 4, 3)))
