"""PRANCE's token methods against the paper's text, token by token; token counts and keep rates."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prance_jax.core.errors import UserError
from prance_jax.tokens.methods.registry import get_method
from prance_jax.tokens.token_set import AttentionSignals, initial_tokens, keep_rate_for, num_keep_at

BATCH, TOKENS, CHANNELS = 4, 11, 6
PAPER = ("merge", "prune", "prune_merge")


def reduce(mode, tokens, signals, rates, floor, **options):
    method = get_method(mode)
    num_keep = method.tokens_after(tokens.count, rates, floor, tokens.token_of_patch.shape[1])
    return method.reduce(tokens, signals, *num_keep, **options)


def example(seed):
    keys = jax.random.split(jax.random.key(seed), 2)
    tokens = initial_tokens(jax.random.normal(keys[0], (BATCH, TOKENS, CHANNELS)))
    importance = jax.nn.softmax(jax.random.normal(keys[1], (BATCH, TOKENS)))
    return tokens, AttentionSignals(importance, importance, importance)


def reference(features, importance, sizes, members, mode, rates, floor):
    """One image, token by token: features, sizes and original patches of each token."""
    order = [0] + sorted(range(1, len(features)), key=lambda n: -importance[n])
    features, sizes, members = ([values[n] for n in order] for values in (features, sizes, members))
    rates = list(rates)
    if mode in ("prune", "prune_merge"):
        kept = max(
            min(floor, len(features)), int(np.floor(np.float32(rates.pop(0)) * np.float32(len(features))))
        )
        features, sizes, members = features[:kept], sizes[:kept], members[:kept]
    if mode in ("merge", "prune_merge"):
        kept = max(
            min(floor, len(features)), int(np.floor(np.float32(rates.pop(0)) * np.float32(len(features))))
        )
        groups = [[n] for n in range(kept)]
        for n in range(kept, len(features)):
            best, best_similarity = 0, -np.inf
            for m in range(1, kept) if kept > 1 else [0]:
                similarity = (
                    features[n] @ features[m] / np.linalg.norm(features[n]) / np.linalg.norm(features[m])
                )
                if similarity > best_similarity:
                    best, best_similarity = m, similarity
            groups[best].append(n)
        members = [sum((members[n] for n in group), []) for group in groups]
        sizes = [sum(sizes[n] for n in group) for group in groups]
        features = [sum(features[n] for n in group) / len(group) for group in groups]
    return np.array(features), np.array(sizes), [sorted(group) for group in members]


def check(reduced, image, expected, count):
    features, sizes, members = expected
    assert count == len(features)
    np.testing.assert_allclose(reduced.features[image, :count], features, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(reduced.sizes[image, :count], sizes)
    token_of_patch = np.asarray(reduced.token_of_patch[image])
    assert [sorted(np.flatnonzero(token_of_patch == n) + 1) for n in range(count)] == [
        [p for p in group if p] for group in members
    ]
    num_kept_patches = sum(len([p for p in group if p]) for group in members)
    assert (token_of_patch == -1).sum() == TOKENS - 1 - num_kept_patches


@pytest.mark.parametrize("floor", [1, 2])
@pytest.mark.parametrize("mode", PAPER)
def test_masked_and_compact_follow_the_text(mode, floor):
    method = get_method(mode)
    masked_reduce = jax.jit(lambda tokens, signals, rates: reduce(mode, tokens, signals, rates, floor))
    rng = np.random.default_rng(0)
    for seed in range(2):
        tokens, signals = example(seed)
        rates = rng.uniform(0.02, 1, (method.rates, BATCH)).astype(np.float32)
        masked = masked_reduce(tokens, signals, tuple(jnp.asarray(rates)))
        for image in range(BATCH):
            start = list(np.asarray(tokens.features[image])), list(np.asarray(signals.cls_attention[image]))
            expected = reference(
                *start, [1.0] * TOKENS, [[n] for n in range(TOKENS)], mode, rates[:, image], floor
            )
            check(masked, image, expected, int(masked.count[image]))
            single = jax.tree.map(lambda leaf: leaf[image : image + 1], (tokens, signals))
            compact = reduce(mode, *single, tuple(float(rate) for rate in rates[:, image]), floor)
            check(compact, 0, expected, compact.features.shape[1])


@pytest.mark.parametrize("mode", PAPER)
def test_two_reductions_in_a_row_keep_sizes_and_patches(mode):
    """After two decision points sizes still count what was not pruned, and no patch is in two tokens."""
    method = get_method(mode)
    tokens, signals = example(9)
    for rate in (0.7, 0.5):
        tokens = reduce(mode, tokens, signals, (jnp.full(BATCH, rate),) * method.rates, 2)
    sizes, token_of_patch = np.asarray(tokens.sizes), np.asarray(tokens.token_of_patch)
    for image in range(BATCH):
        count = int(tokens.count[image])
        members = np.bincount(token_of_patch[image][token_of_patch[image] >= 0], minlength=TOKENS)
        members[0] += 1
        np.testing.assert_allclose(sizes[image], np.where(np.arange(TOKENS) < count, members, 0))
        assert token_of_patch[image].max() < count
    if mode == "merge":
        np.testing.assert_allclose(sizes.sum(1), TOKENS)


def test_size_weighted_mean_as_an_option():
    tokens, signals = example(3)
    once = reduce("merge", tokens, signals, (0.5,), 2)
    ranked = AttentionSignals(*(-jnp.broadcast_to(jnp.arange(5.0), (BATCH, 5)),) * 3)
    results = [reduce("merge", once, ranked, (0.5,), 2, weighted=weighted) for weighted in (False, True)]
    assert float(jnp.abs(results[0].features - results[1].features).max()) > 1e-3
    # Weighted merging keeps the sum of size x features over all patches.
    total = jnp.sum(results[1].features * results[1].sizes[:, :, None], axis=1)
    np.testing.assert_allclose(total, jnp.sum(tokens.features, axis=1), rtol=1e-4, atol=1e-5)


def test_ties_go_to_the_lowest_index():
    tokens, _ = example(0)
    flat = jnp.ones((BATCH, TOKENS)) / TOKENS
    reduced = reduce("prune", tokens, AttentionSignals(flat, flat, flat), (0.5,), 2)
    np.testing.assert_array_equal(reduced.features, tokens.features[:, :5])


@given(st.integers(1, 600), st.floats(2**-10, 1.0, width=32, allow_subnormal=False), st.sampled_from([1, 2]))
def test_static_and_array_counts_are_the_same_number(count, keep, floor):
    array = num_keep_at(jnp.int32(count), jnp.float32(keep), floor)
    assert num_keep_at(count, keep, floor) == int(array)
    assert min(floor, count) <= int(array) <= count


def test_a_rate_that_is_not_a_number_keeps_everything():
    assert int(num_keep_at(jnp.int32(9), jnp.float32(jnp.nan), 2)) == 9


def test_unknown_method_error_lists_the_known_ones():
    with pytest.raises(UserError, match="'prnue' is not known; choose from prune, merge, prune_merge, tome"):
        get_method("prnue")


def test_there_is_a_rate_for_every_count():
    """Up to the 1,025 tokens of 512 pixels, by the int and by the array."""
    count = np.arange(1, 1026)
    for num_keep in (1, 2, 3, 17, 196, 577, 1024, 1025):
        arriving = count[count >= num_keep]
        rates = keep_rate_for(jnp.full(len(arriving), num_keep), jnp.asarray(arriving))
        assert (np.asarray(num_keep_at(jnp.asarray(arriving), rates, 1)) == num_keep).all()
        assert all(num_keep_at(int(n), keep_rate_for(num_keep, int(n)), 1) == num_keep for n in arriving)
