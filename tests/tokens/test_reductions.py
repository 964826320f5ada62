"""What every token method must keep: masked equals compact, limits of the counts, track of every patch."""

import functools
import importlib
import pkgutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tokens.plain_methods import ONE_RATE, compact_method, random_case

from prance_jax.tokens import methods
from prance_jax.tokens.method import TokenMethod
from prance_jax.tokens.methods.registry import METHODS
from prance_jax.tokens.token_set import TokenSet


def test_every_method_is_registered():
    modules = [
        importlib.import_module(f"{methods.__name__}.{m.name}")
        for m in pkgutil.iter_modules(methods.__path__)
    ]
    defined = {
        value.name: value for m in modules for value in vars(m).values() if isinstance(value, TokenMethod)
    }
    assert defined == METHODS


@functools.lru_cache(maxsize=None)
def masked_method(name):
    return jax.jit(ONE_RATE[name].reduce)


@pytest.mark.parametrize("name", ONE_RATE)
def test_masked_is_compact(name):
    """Two reductions in a row; every image has its own counts, from all tokens to as few as possible.

    Features of invalid tokens are large numbers, which must not matter.
    """
    method, count, batch = ONE_RATE[name], 17, 6
    tokens, signals = random_case(11, count, batch=batch)
    tokens = tokens._replace(token_of_patch=jnp.broadcast_to(jnp.arange(1, count), (batch, count - 1)))
    requested = jnp.asarray([count, 14, 11, 9, 5, 2]), jnp.asarray([9, 14, 6, 9, 3, 2])
    masked, counts = tokens, []
    for request in requested:
        num_keep = method.feasible_count(masked.count, jnp.minimum(request, masked.count), count - 1)
        counts.append(np.asarray(num_keep))
        masked = masked_method(name)(masked, signals, num_keep)
        masked = masked._replace(features=jnp.where(masked.valid[:, :, None], masked.features, 1e6))
        zero_invalid = lambda x: jnp.where(masked.valid.reshape(batch, count, *(1,) * (x.ndim - 2)), x, 0.0)
        signals = jax.tree.map(zero_invalid, signals)
    for image in range(batch):
        compact = jax.tree.map(lambda leaf: leaf[image : image + 1], tokens)
        all_signals = jax.tree.map(
            lambda leaf: leaf[image : image + 1], random_case(11, count, batch=batch)[1]
        )
        for num_keep in counts:
            arriving = compact.features.shape[1]
            compact_signals = jax.tree.map(lambda leaf: leaf[:, :arriving], all_signals)
            static = method.feasible_count(arriving, int(num_keep[image]), count - 1)
            assert static == num_keep[image]
            compact = compact_method(name, static)(compact, compact_signals)
        end = compact.features.shape[1]
        assert int(masked.count[image]) == end
        np.testing.assert_allclose(masked.features[image, :end], compact.features[0], rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(masked.token_of_patch[image], compact.token_of_patch[0])
        np.testing.assert_allclose(masked.sizes[image, :end], compact.sizes[0], rtol=1e-5)


@pytest.mark.parametrize("name", ONE_RATE)
@pytest.mark.parametrize("count", [1, 2, 5])
def test_extreme_requests_give_valid_tokens(name, count):
    """More tokens than arrive, none, one token, an odd grid.

    CLS stays first, and every patch has a valid index.
    """
    method, batch = ONE_RATE[name], 3
    tokens, signals = random_case(1, max(count, 2))
    first = lambda x: x[:, :count]
    token_of_patch = jnp.broadcast_to(jnp.arange(1, count), (batch, count - 1))
    tokens = TokenSet(first(tokens.features), None, None, token_of_patch)
    signals = jax.tree.map(first, signals)
    for request in {0, 2, count + 5}:
        num_keep = method.feasible_count(count, request, count - 1)
        assert 1 <= num_keep <= count and (num_keep >= request or request > count)
        reduced = compact_method(name, num_keep)(tokens, signals)
        assert reduced.features.shape[1] == num_keep and np.isfinite(reduced.features).all()
        if num_keep > 1 and name not in ("prune", "merge"):
            np.testing.assert_allclose(reduced.features[:, 0], tokens.features[:, 0], rtol=1e-6)
        assert (
            reduced.token_of_patch.shape == token_of_patch.shape
            and (np.asarray(reduced.token_of_patch) < num_keep).all()
        )
        if num_keep == count:
            np.testing.assert_allclose(np.sort(reduced.features, 1), np.sort(tokens.features, 1), rtol=1e-6)


@pytest.mark.parametrize("name", ONE_RATE)
def test_members_count_the_patches_of_every_token(name):
    """All patches and CLS where nothing is dropped; equal to the tracked sizes where there are any."""
    tokens, signals = random_case(2, 17)
    tokens = tokens._replace(token_of_patch=jnp.broadcast_to(jnp.arange(1, 17), (3, 16)))
    reduced = ONE_RATE[name].reduce(tokens, signals, ONE_RATE[name].feasible_count(17, 9, 16))
    members = np.asarray(reduced.members)
    num_dropped = (np.asarray(reduced.token_of_patch) < 0).sum(1)
    np.testing.assert_array_equal(members.sum(1), 17 - num_dropped)
    if name in ("tome", "merge", "mctf", "cait"):
        np.testing.assert_allclose(members, reduced.size, rtol=1e-6)
        assert not num_dropped.any()
    if name == "prune":
        np.testing.assert_array_equal(num_dropped, 8)
