"""Every method against its text, token by token in plain NumPy; and what all of them must keep."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small import quick_jit

from prance_jax.core.errors import UserError
from prance_jax.tokens.methods.cait import grids, rectangles
from prance_jax.tokens.methods.diffrate import diffrate
from prance_jax.tokens.methods.ppt import ppt, significance
from prance_jax.tokens.methods.prance import prune
from prance_jax.tokens.methods.registry import METHODS
from prance_jax.tokens.methods.spvit_package import package
from prance_jax.tokens.schedules import Constant, KeepRate, Kept, Removed, Sites
from prance_jax.tokens.token_set import AttentionSignals, TokenSet

ONE_RATE = {name: method for name, method in METHODS.items() if method.rates == 1}


def case(seed, count=12, sized=False, batch=3):
    rng = np.random.default_rng(seed)
    share = lambda: rng.exponential(size=(batch, count)).astype(np.float32)
    attention, received = share(), share()
    signals = AttentionSignals(
        jnp.asarray(attention / attention.sum(1, keepdims=True)),
        jnp.asarray(rng.normal(size=(batch, count, 4)), jnp.float32),
        jnp.asarray(rng.uniform(0.5, 2, size=(batch, count)), jnp.float32),
        jnp.asarray(received / received.sum(1, keepdims=True)),
    )
    size = rng.integers(1, 5, (batch, count)).astype(np.float32) if sized else None
    token_of_patch = np.stack([rng.permutation(count - 1) + 1 for _ in range(batch)]).astype(np.int32)
    features = jnp.asarray(rng.normal(size=(batch, count, 6)), jnp.float32)
    tokens = TokenSet(
        features, None if size is None else jnp.asarray(size), None, jnp.asarray(token_of_patch)
    )
    return tokens, signals


def plain(tokens, signals):
    """One image after the other, as lists of [features, size, patches]; then its signals."""
    sizes = np.asarray(tokens.sizes)
    for b in range(len(tokens.features)):
        patches = [
            set(np.flatnonzero(np.asarray(tokens.token_of_patch[b]) == i)) for i in range(sizes.shape[1])
        ]
        yield (
            [[np.asarray(x, np.float64), s, p] for x, s, p in zip(tokens.features[b], sizes[b], patches)],
            *(np.asarray(part[b], np.float64) for part in signals),
        )


def cosine(a, b):
    return a @ b / np.linalg.norm(a) / np.linalg.norm(b)


def joined(group, weights):
    """[features, size, patches] of tokens that become one."""
    features = sum(w * x for w, (x, _, _) in zip(weights, group)) / sum(weights)
    return [features, sum(s for _, s, _ in group), set().union(*(p for _, _, p in group))]


def plain_tome(tokens, keys, removed):
    even, odd = list(range(0, len(tokens), 2)), list(range(1, len(tokens), 2))
    best = {a: max(odd, key=lambda b: cosine(keys[a], keys[b])) for a in even[1:]}
    gone = sorted(best, key=lambda a: -cosine(keys[a], keys[best[a]]))[:removed]
    groups = [[b] + [a for a in gone if best[a] == b] for b in odd]
    merged = [joined([tokens[i] for i in group], [tokens[i][1] for i in group]) for group in groups]
    return [tokens[a] for a in even if a not in gone] + merged


def plain_evit(tokens, attention, kept):
    order = [0] + sorted(range(1, len(tokens)), key=lambda i: -attention[i])
    rest = order[kept:]
    fused = [sum(attention[i] * tokens[i][0] for i in rest), 1.0, set().union(*(tokens[i][2] for i in rest))]
    return [tokens[i] for i in order[:kept]] + [fused]


def plain_ppt(tokens, attention, keys, values, removed, threshold):
    score = attention[1:] * values[1:]
    score = score / score.sum()
    if score.var(ddof=1) < threshold:
        return plain_tome(tokens, keys, removed)
    order = [0] + [1 + i for i in sorted(range(len(score)), key=lambda i: -score[i])]
    return [tokens[i] for i in order[: len(tokens) - removed]]


def plain_package(tokens, attention, left, gathered=0.0):
    """gathered: score that the last token, the package, holds already."""
    patches = range(1, len(tokens) - (gathered > 0))
    order = [0] + sorted(patches, key=lambda i: -attention[i])
    rest = order[left - 1 :]
    group = [tokens[i] for i in rest] + ([tokens[-1]] if gathered else [])
    weights = [attention[i] for i in rest] + ([gathered] if gathered else [])
    return [tokens[i] for i in order[: left - 1]] + [joined(group, weights)], sum(weights)


def plain_diffrate(tokens, attention, left, share):
    order = [0] + sorted(range(1, len(tokens)), key=lambda i: -attention[i])
    order = order[: len(order) - int(share * (len(order) - left))]
    groups = {i: [i] for i in order[:left]}
    for i in order[left:]:
        groups[max(order[1:left], key=lambda j: cosine(tokens[i][0], tokens[j][0]))].append(i)
    result = []
    for i, group in groups.items():
        one = joined([tokens[j] for j in group], [1.0] * len(group))
        one[1] = sum(
            tokens[j][1] * (1 if j == i else max(cosine(tokens[i][0], tokens[j][0]), 0)) for j in group
        )
        result.append(one)
    return result


def plain_mctf(tokens, received, removed):
    inverse = [1 / r for r in received], [1 / s for _, s, _ in tokens]
    information, small = ([v / max(values) for v in values] for values in inverse)

    def score(a, b):
        similar = (1 + cosine(tokens[a][0], tokens[b][0])) / 2
        return similar * (information[a] * information[b]) ** (1 / 20) * (small[a] * small[b]) ** (1 / 40)

    even, odd = list(range(0, len(tokens), 2)), list(range(1, len(tokens), 2))
    groups = {i: [i] for i in range(len(tokens))}
    best = {a: max(odd, key=lambda b: score(a, b)) for a in even[1:]}
    gone = sorted(best, key=lambda a: -score(a, best[a]))[: removed - removed // 2]
    for a in gone:
        groups[best[a]] += groups.pop(a)
    open_to = [a for a in even[1:] if a not in gone]
    back = {b: max(open_to, key=lambda a: score(a, b)) for b in odd} if open_to else {}
    for b in sorted(back, key=lambda b: -score(back[b], b))[: removed // 2]:
        groups[back[b]] += groups.pop(b)
    order = [i for i in even + odd if i in groups]
    return [
        joined([tokens[j] for j in groups[i]], [received[j] * tokens[j][1] for j in groups[i]]) for i in order
    ]


def plain_cait(grid, pairs_per_line):
    """grid: rows of tokens; the most similar pairs (0, 1), (2, 3), ... of every row become one."""
    result = []
    for row in grid:
        pairs = sorted(range(0, len(row) - 1, 2), key=lambda j: -cosine(row[j][0], row[j + 1][0]))
        merge, line = set(pairs[:pairs_per_line]), []
        for j, token in enumerate(row):
            if j in merge:
                line.append(joined([token, row[j + 1]], [token[1], row[j + 1][1]]))
            elif j - 1 not in merge:
                line.append(token)
        result.append(line)
    return result


def agree(found, wanted, image, sizes=True):
    assert found.features.shape[1] == len(wanted)
    for new_index, (features, size, patches) in enumerate(wanted):
        np.testing.assert_allclose(found.features[image, new_index], features, rtol=1e-4, atol=1e-5)
        assert set(np.flatnonzero(np.asarray(found.token_of_patch[image]) == new_index)) == patches
        if sizes:
            assert float(found.size[image, new_index]) == pytest.approx(size, rel=1e-5)


@pytest.mark.parametrize("count, removed, sized", [(12, 4, False), (13, 6, True), (7, 1, True)])
def test_tome_follows_the_text(count, removed, sized):
    tokens, signals = case(count, count, sized)
    found = _compact("tome", count - removed)(tokens, signals)
    for image, (own, _, keys, *_) in enumerate(plain(tokens, signals)):
        agree(found, plain_tome(own, keys, removed), image)
    # Nothing is lost: sizes add up, and so does size x features.
    np.testing.assert_allclose(found.sizes.sum(1), tokens.sizes.sum(1), rtol=1e-6)
    weighted = lambda some: np.asarray((some.features * some.sizes[:, :, None]).sum(1))
    np.testing.assert_allclose(weighted(found), weighted(tokens), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("left", [4, 11])
def test_evit_follows_the_text(left):
    tokens, signals = case(left)
    found = _compact("evit", left)(tokens, signals)
    for image, (own, attention, *_) in enumerate(plain(tokens, signals)):
        agree(found, plain_evit(own, attention, left - 1), image, sizes=False)
    assert found.size is None


def test_ppt_follows_the_text_and_decides_per_image():
    tokens, signals = case(5, 14, sized=True, batch=8)
    variances = [(s / s.sum()).var(ddof=1) for s in np.asarray(signals.cls_attention * signals.values)[:, 1:]]
    threshold = float(np.median(variances))
    found = quick_jit(lambda t, s: ppt(t, s, 9, threshold))(tokens, signals)
    for image, (own, *parts) in enumerate(plain(tokens, signals)):
        agree(found, plain_ppt(own, *parts[:3], 5, threshold), image)
    _, peaky = significance(tokens, signals, threshold, False)
    assert 0 < int(peaky.sum()) < 8  # the batch mixes both
    free = significance(tokens, signals, threshold * 13**2, True)[1]
    np.testing.assert_array_equal(free, peaky)
    for image in (0, 3, 7):
        one = lambda tree: jax.tree.map(lambda leaf: leaf[image : image + 1], tree)
        alone = quick_jit(lambda t, s: ppt(t, s, 9, threshold))(one(tokens), one(signals))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6), alone, one(found))


def test_package_follows_the_text_and_is_carried_on():
    tokens, signals = case(3)
    once = package(tokens, signals, 8)
    again = package(once, jax.tree.map(lambda x: x[:, :8], signals), 5)
    for image, (own, attention, *_) in enumerate(plain(tokens, signals)):
        wanted, gathered = plain_package(own, attention, 8)
        agree(once, wanted, image, sizes=False)
        wanted, total = plain_package(wanted, attention[:8], 5, gathered)
        agree(again, wanted, image, sizes=False)
        np.testing.assert_allclose((once.package[image], again.package[image]), (gathered, total), rtol=1e-5)


@pytest.mark.parametrize("left, share", [(7, 0.5), (3, 0.0), (9, 1.0)])
def test_diffrate_follows_the_text(left, share):
    tokens, signals = case(left, sized=True)
    found = quick_jit(lambda t, s: diffrate(t, s, left, share))(tokens, signals)
    for image, (own, attention, *_) in enumerate(plain(tokens, signals)):
        agree(found, plain_diffrate(own, attention, left, share), image)


@pytest.mark.parametrize("count, removed, sized", [(12, 5, True), (13, 6, False), (8, 1, True)])
def test_mctf_follows_the_text(count, removed, sized):
    tokens, signals = case(count, count, sized)
    found = _compact("mctf", count - removed)(tokens, signals)
    for image, (own, *_, received) in enumerate(plain(tokens, signals)):
        agree(found, plain_mctf(own, received, removed), image)


@pytest.mark.parametrize("side", [4, 5])
def test_cait_follows_the_text_and_keeps_a_grid(side):
    """All pairs of columns but one of each row, then what is left of the columns, then a row of each column."""
    tokens, signals = case(side, 1 + side**2, sized=True)
    half = -(-side // 2)
    for steps in ([(side, half + 1)], [(side, half)], [(side, half), (side - 1, half)]):
        found = tokens
        for rows, columns in steps:
            found = _compact("cait", 1 + rows * columns)(found, signals)
        for image, (own, *_) in enumerate(plain(tokens, signals)):
            grid = [own[1 + row * side : 1 + (row + 1) * side] for row in range(side)]
            grid = plain_cait(grid, side - steps[0][1])
            if len(steps) == 2:
                grid = list(zip(*plain_cait(list(zip(*grid)), 1)))
            agree(found, [own[0], *(token for row in grid for token in row)], image)


def test_rectangles_on_the_way_down():
    """14 x 14 -> 14 x 7 -> 7 x 7 (the paper's example), in steps of a column or a row; never more than a half at once."""
    table = grids(14)
    assert {196, 98, 49, 28} <= set(table.patches) and table.patches[-1] == 1
    assert (np.diff(table.patches) < 0).all()
    assert [rectangles(197, wanted, 14) for wanted in (197, 196, 180, 99, 2)] == [197, 197, 183, 99, 99]
    assert [rectangles(99, wanted, 14) for wanted in (98, 50, 1)] == [99, 50, 50]
    each = rectangles(jnp.asarray([197, 99, 15]), jnp.asarray([180, 1, 15]), 14)
    np.testing.assert_array_equal(each, [183, 50, rectangles(15, 15, 14)])


@functools.lru_cache(maxsize=None)
def _masked(name):
    return jax.jit(ONE_RATE[name].reduce)


@functools.lru_cache(maxsize=None)
def _compact(name, left):
    return quick_jit(lambda tokens, signals: ONE_RATE[name].reduce(tokens, signals, left))


@pytest.mark.parametrize("name", ONE_RATE)
def test_masked_is_compact(name):
    """Twice in a row, every image with numbers of its own, from everything kept to as little as possible; what is invalid
    may hold anything."""
    method, count, batch = ONE_RATE[name], 17, 6
    tokens, signals = case(11, count, batch=batch)
    tokens = tokens._replace(token_of_patch=jnp.broadcast_to(jnp.arange(1, count), (batch, count - 1)))
    wanted = jnp.asarray([count, 14, 11, 9, 5, 2]), jnp.asarray([9, 14, 6, 9, 3, 2])
    masked, counts = tokens, []
    for left in wanted:
        left = method.possible(masked.count, jnp.minimum(left, masked.count), count - 1)
        counts.append(np.asarray(left))
        masked = _masked(name)(masked, signals, left)
        noise = jnp.where(masked.valid[:, :, None], masked.features, 1e6)
        masked = masked._replace(features=noise)
        mlp_dims = lambda x: jnp.where(masked.valid.reshape(batch, count, *(1,) * (x.ndim - 2)), x, 0.0)
        signals = jax.tree.map(mlp_dims, signals)
    for image in range(batch):
        one = jax.tree.map(lambda leaf: leaf[image : image + 1], tokens)
        own = jax.tree.map(lambda leaf: leaf[image : image + 1], case(11, count, batch=batch)[1])
        for left in counts:
            arriving = one.features.shape[1]
            part = jax.tree.map(lambda leaf: leaf[:, :arriving], own)
            least = method.possible(arriving, int(left[image]), count - 1)
            assert least == left[image]
            one = _compact(name, least)(one, part)
        left = one.features.shape[1]
        assert int(masked.count[image]) == left
        np.testing.assert_allclose(masked.features[image, :left], one.features[0], rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(masked.token_of_patch[image], one.token_of_patch[0])
        np.testing.assert_allclose(masked.sizes[image, :left], one.sizes[0], rtol=1e-5)


@pytest.mark.parametrize("name", ONE_RATE)
@pytest.mark.parametrize("count", [1, 2, 5])
def test_what_cannot_be_removed_stays(name, count):
    """More than there is, everything, nothing, one token, an odd grid: a token set with CLS in front, every patch at a
    place that exists."""
    method, batch = ONE_RATE[name], 3
    tokens, signals = case(1, max(count, 2))
    cut = lambda x: x[:, :count]
    token_of_patch = jnp.broadcast_to(jnp.arange(1, count), (batch, count - 1))
    tokens = TokenSet(cut(tokens.features), None, None, token_of_patch)
    signals = jax.tree.map(cut, signals)
    for wanted in {0, 2, count + 5}:
        left = method.possible(count, wanted, count - 1)
        assert 1 <= left <= count and (left >= wanted or wanted > count)
        found = _compact(name, left)(tokens, signals)
        assert found.features.shape[1] == left and np.isfinite(found.features).all()
        if left > 1 and name not in ("prune", "merge"):
            np.testing.assert_allclose(found.features[:, 0], tokens.features[:, 0], rtol=1e-6)
        assert (
            found.token_of_patch.shape == token_of_patch.shape
            and (np.asarray(found.token_of_patch) < left).all()
        )
        if left == count:
            np.testing.assert_allclose(np.sort(found.features, 1), np.sort(tokens.features, 1), rtol=1e-6)


@pytest.mark.parametrize("name", ONE_RATE)
def test_members_say_where_every_patch_went(name):
    """Sizes from the origins: all patches and CLS where nothing is dropped, and what is tracked where sizes are."""
    tokens, signals = case(2, 17)
    tokens = tokens._replace(token_of_patch=jnp.broadcast_to(jnp.arange(1, 17), (3, 16)))
    found = ONE_RATE[name].reduce(tokens, signals, ONE_RATE[name].possible(17, 9, 16))
    members = np.asarray(found.members)
    dropped = (np.asarray(found.token_of_patch) < 0).sum(1)
    np.testing.assert_array_equal(members.sum(1), 17 - dropped)
    if name in ("tome", "merge", "mctf", "cait"):
        np.testing.assert_allclose(members, found.size, rtol=1e-6)
        assert not dropped.any()
    if name == "prune":
        np.testing.assert_array_equal(dropped, 8)


def test_prune_drops_the_least_attended():
    tokens, signals = case(4)
    found = prune(tokens, signals, 5)
    for image, (own, attention, *_) in enumerate(plain(tokens, signals)):
        order = [0] + sorted(range(1, len(own)), key=lambda i: -attention[i])
        agree(found, [own[i] for i in order[:5]], image, sizes=False)


@settings(max_examples=40)
@given(st.integers(1, 30), st.integers(0, 300), st.floats(-1, 1), st.integers(2, 600))
def test_schedules_never_leave_nothing(depth, amount, inflect, tokens):
    for schedule in (
        Constant(amount, inflect),
        Sites(amount, (0, depth - 1)),
        KeepRate(0.3, (0, depth - 1)),
        Removed((amount,) * (depth + 2)),
    ):
        left = schedule.tokens_after(depth, tokens)
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
        (lambda: Sites(5, (12,)).tokens_after(12, 197), "layers from 0 to 11"),
        (lambda: Kept((5, 9)).tokens_after(2, 10), "never rise"),
    ],
)
def test_schedules_that_make_no_sense(make, words):
    with pytest.raises(UserError, match=words):
        make()
