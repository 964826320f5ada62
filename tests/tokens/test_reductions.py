"""ToMe, EViT and PPT against the text, token by token in plain NumPy; and what all of them must keep."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prance_jax.errors import UserError
from prance_jax.tokens import AttentionSignals, TokenSet
from prance_jax.tokens.evit import evit
from prance_jax.tokens.ppt import ppt, significance
from prance_jax.tokens.schedules import Constant, KeepRate, Kept, Removed, Sites
from prance_jax.tokens.tome import tome


def case(seed, count=12, sized=False, batch=3):
    rng = np.random.default_rng(seed)
    attention = rng.exponential(size=(batch, count)).astype(np.float32)
    signals = AttentionSignals(
        jnp.asarray(attention / attention.sum(1, keepdims=True)),
        jnp.asarray(rng.normal(size=(batch, count, 4)), jnp.float32),
        jnp.asarray(rng.uniform(0.5, 2, size=(batch, count)), jnp.float32),
    )
    size = rng.integers(1, 5, (batch, count)).astype(np.float32) if sized else None
    owner = np.stack([rng.permutation(count - 1) + 1 for _ in range(batch)]).astype(np.int32)
    features = jnp.asarray(rng.normal(size=(batch, count, 6)), jnp.float32)
    tokens = TokenSet(features, None if size is None else jnp.asarray(size), None, jnp.asarray(owner))
    return tokens, signals


def plain(tokens, signals):
    """One image after the other, as lists of (features, size, patches)."""
    sizes = np.asarray(tokens.sizes)
    for b in range(len(tokens.features)):
        patches = [set(np.flatnonzero(np.asarray(tokens.owner[b]) == i)) for i in range(sizes.shape[1])]
        yield (
            [[np.asarray(x, np.float64), s, p] for x, s, p in zip(tokens.features[b], sizes[b], patches)],
            *(np.asarray(part[b], np.float64) for part in signals),
        )


def plain_tome(tokens, keys, removed):
    unit = [key / np.linalg.norm(key) for key in keys]
    even, odd = list(range(0, len(tokens), 2)), list(range(1, len(tokens), 2))
    best = {a: max(odd, key=lambda b: unit[a] @ unit[b]) for a in even[1:]}
    gone = sorted(best, key=lambda a: -(unit[a] @ unit[best[a]]))[:removed]
    total = {b: [tokens[b][0] * tokens[b][1], tokens[b][1], set(tokens[b][2])] for b in odd}
    for a in gone:
        total[best[a]][0] = total[best[a]][0] + tokens[a][0] * tokens[a][1]
        total[best[a]][1] += tokens[a][1]
        total[best[a]][2] |= tokens[a][2]
    return [tokens[a] for a in even if a not in gone] + [[x / s, s, p] for x, s, p in total.values()]


def plain_evit(tokens, attention, kept, fuse):
    order = [0] + sorted(range(1, len(tokens)), key=lambda i: -attention[i])
    rest = order[kept:]
    fused = [sum(attention[i] * tokens[i][0] for i in rest), 1.0, set().union(*(tokens[i][2] for i in rest))]
    return [tokens[i] for i in order[:kept]] + ([fused] if fuse else [])


def plain_ppt(tokens, attention, keys, values, removed, threshold):
    score = attention[1:] * values[1:]
    score = score / score.sum()
    if score.var(ddof=1) < threshold:
        return plain_tome(tokens, keys, removed)
    order = [0] + [1 + i for i in sorted(range(len(score)), key=lambda i: -score[i])]
    return [tokens[i] for i in order[: len(tokens) - removed]]


def agree(found, wanted, image, sizes=True):
    assert found.features.shape[1] == len(wanted)
    for place, (features, size, patches) in enumerate(wanted):
        np.testing.assert_allclose(found.features[image, place], features, rtol=1e-4, atol=1e-5)
        assert set(np.flatnonzero(np.asarray(found.owner[image]) == place)) == patches
        if sizes:
            assert float(found.size[image, place]) == pytest.approx(size)


@pytest.mark.parametrize("count, removed, sized", [(12, 4, False), (13, 6, True), (7, 1, True)])
def test_tome_follows_the_text(count, removed, sized):
    tokens, signals = case(count, count, sized)
    found = tome(tokens, signals, count - removed)
    for image, (own, _, keys, _) in enumerate(plain(tokens, signals)):
        agree(found, plain_tome(own, keys, removed), image)
    # Nothing is lost: sizes add up, and so does size x features.
    np.testing.assert_allclose(found.sizes.sum(1), tokens.sizes.sum(1), rtol=1e-6)
    weighted = lambda some: np.asarray((some.features * some.sizes[:, :, None]).sum(1))
    np.testing.assert_allclose(weighted(found), weighted(tokens), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("fuse", [True, False])
@pytest.mark.parametrize("left", [4, 11])
def test_evit_follows_the_text(left, fuse):
    tokens, signals = case(left)
    found = evit(tokens, signals, left, fuse)
    kept = left - 1 if fuse else left
    for image, (own, attention, *_) in enumerate(plain(tokens, signals)):
        agree(found, plain_evit(own, attention, kept, fuse), image, sizes=False)
    assert found.size is None


def test_ppt_follows_the_text_and_decides_per_image():
    tokens, signals = case(5, 14, sized=True, batch=8)
    variances = [(s / s.sum()).var(ddof=1) for s in np.asarray(signals.cls_attention * signals.values)[:, 1:]]
    threshold = float(np.median(variances))
    found = ppt(tokens, signals, 9, threshold)
    for image, (own, *parts) in enumerate(plain(tokens, signals)):
        agree(found, plain_ppt(own, *parts, 5, threshold), image)
    _, peaky = significance(signals, threshold, False)
    assert 0 < int(peaky.sum()) < 8  # the batch mixes both
    free = significance(signals, threshold * 13**2, True)[1]
    np.testing.assert_array_equal(free, peaky)
    for image in range(8):
        one = lambda tree: jax.tree.map(lambda leaf: leaf[image : image + 1], tree)
        alone = ppt(one(tokens), one(signals), 9, threshold)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6), alone, one(found))


@pytest.mark.parametrize("method", [tome, evit, ppt])
@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_what_cannot_be_removed_stays(method, count):
    """More than there is, everything, nothing, one token: the result is a token set with CLS in front."""
    tokens, signals = case(1, max(count, 2))
    cut = lambda x: x[:, :count]
    tokens = TokenSet(cut(tokens.features), None, None, jnp.zeros((3, 1), jnp.int32))
    signals = jax.tree.map(cut, signals)
    assert method(tokens, signals, count) is tokens and method(tokens, signals, count + 5) is tokens
    for left in (1, 2):
        found = method(tokens, signals, left)
        assert 1 <= found.features.shape[1] <= count and np.isfinite(found.features).all()
        if not (method is tome or count == 1) or count <= 3:
            np.testing.assert_array_equal(found.features[:, 0], tokens.features[:, 0])


@settings(max_examples=40)
@given(st.integers(1, 30), st.integers(0, 300), st.floats(-1, 1), st.integers(2, 600))
def test_schedules_never_leave_nothing(depth, amount, inflect, tokens):
    for schedule in (
        Constant(amount, inflect),
        Sites(amount, (0, depth - 1)),
        KeepRate(0.3, (0, depth - 1)),
        Removed((amount,) * (depth + 2)),
    ):
        left = schedule.left(depth, tokens)
        assert len(left) == depth and min(left) >= 1 and list(left) == sorted(left, reverse=True)
        assert left[0] <= tokens


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: Constant(-1), "r=-1 must be 0 or more"),
        (lambda: Constant(8, 2.0), "inflect=2.0"),
        (lambda: KeepRate(0.0), "keep rate 0.0"),
        (lambda: KeepRate(float("nan")), "keep rate nan"),
        (lambda: Removed((3, -1)), "whole numbers"),
        (lambda: Sites(5, (12,)).left(12, 197), "layers from 0 to 11"),
        (lambda: Kept((5, 9)).left(2, 10), "never rise"),
    ],
)
def test_schedules_that_make_no_sense(make, words):
    with pytest.raises(UserError, match=words):
        make()
