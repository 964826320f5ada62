"""Every patch gets the features of its token, or the chosen replacement."""

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
    reduced = method.reduce(tokens, signals, method.feasible_count(17, 9, PATCHES))
    grid, token_of_patch = np.asarray(unmerge(reduced)), np.asarray(reduced.token_of_patch)
    position = np.array([divmod(p, SIDE) for p in range(PATCHES)])
    for image in range(BATCH):
        has_token = np.flatnonzero(token_of_patch[image] >= 0)
        for patch in range(PATCHES):
            nearest = min(has_token, key=lambda p: (((position[p] - position[patch]) ** 2).sum(), p))
            np.testing.assert_array_equal(
                grid[image, patch], reduced.features[image, token_of_patch[image, nearest]]
            )


def test_pruned_patches_become_zero_or_keep_their_last_features():
    tokens, signals = example(1)
    once = METHODS["prune"].reduce(tokens, signals, 9)
    changed = once._replace(features=2 * once.features)
    twice = METHODS["prune"].reduce(changed, AttentionSignals(*[x[:, :9] for x in signals]), 4)
    last = last_features(jnp.zeros((BATCH, PATCHES, 5)), tokens, once)
    last = last_features(last, changed, twice)
    kept, zeros = np.asarray(unmerge(twice, last=last)), np.asarray(unmerge(twice, "zero"))
    for image in range(BATCH):
        for patch in range(PATCHES):
            original = np.asarray(tokens.features[image, 1 + patch])
            if twice.token_of_patch[image, patch] >= 0 or once.token_of_patch[image, patch] >= 0:
                np.testing.assert_array_equal(kept[image, patch], 2 * original)
            else:
                np.testing.assert_array_equal(kept[image, patch], original)
            if twice.token_of_patch[image, patch] < 0:
                assert not zeros[image, patch].any()


def test_only_cls_remains():
    features = jnp.arange(6.0).reshape(1, 2, 3)
    tokens = TokenSet(features[:, :1], None, None, jnp.full((1, 4), -1))
    np.testing.assert_array_equal(unmerge(tokens), np.broadcast_to(features[:, :1], (1, 4, 3)))
