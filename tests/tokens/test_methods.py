"""Every method against its paper's text, in plain NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import quick_jit
from tokens.plain_methods import (
    assert_tokens,
    compact_method,
    images_of,
    plain_cait,
    plain_diffrate,
    plain_evit,
    plain_mctf,
    plain_package,
    plain_ppt,
    plain_tome,
    random_case,
)

from prance_jax.tokens.methods.cait import grids, rectangle_count
from prance_jax.tokens.methods.diffrate import diffrate
from prance_jax.tokens.methods.ppt import ppt, significance
from prance_jax.tokens.methods.prance import prune
from prance_jax.tokens.methods.spvit_package import package


@pytest.mark.parametrize("count, num_removed, sized", [(12, 4, False), (13, 6, True), (7, 1, True)])
def test_tome_follows_the_text(count, num_removed, sized):
    tokens, signals = random_case(count, count, sized)
    reduced = compact_method("tome", count - num_removed)(tokens, signals)
    for image, (plain_tokens, _, keys, *_) in enumerate(images_of(tokens, signals)):
        assert_tokens(reduced, plain_tome(plain_tokens, keys, num_removed), image)
    # Sums stay the same: of sizes, and of size x features.
    np.testing.assert_allclose(reduced.sizes.sum(1), tokens.sizes.sum(1), rtol=1e-6)
    weighted = lambda tokens: np.asarray((tokens.features * tokens.sizes[:, :, None]).sum(1))
    np.testing.assert_allclose(weighted(reduced), weighted(tokens), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("num_keep", [4, 11])
def test_evit_follows_the_text(num_keep):
    tokens, signals = random_case(num_keep)
    reduced = compact_method("evit", num_keep)(tokens, signals)
    for image, (plain_tokens, attention, *_) in enumerate(images_of(tokens, signals)):
        assert_tokens(reduced, plain_evit(plain_tokens, attention, num_keep - 1), image, sizes=False)
    assert reduced.size is None


def test_ppt_follows_the_text_and_decides_per_image():
    tokens, signals = random_case(5, 14, sized=True, batch=8)
    variances = [(s / s.sum()).var(ddof=1) for s in np.asarray(signals.cls_attention * signals.values)[:, 1:]]
    threshold = float(np.median(variances))
    reduced = quick_jit(lambda t, s: ppt(t, s, 9, threshold))(tokens, signals)
    for image, (plain_tokens, *parts) in enumerate(images_of(tokens, signals)):
        assert_tokens(reduced, plain_ppt(plain_tokens, *parts[:3], 5, threshold), image)
    _, is_pruned = significance(tokens, signals, threshold, False)
    assert 0 < int(is_pruned.sum()) < 8  # the batch has both kinds
    scale_free = significance(tokens, signals, threshold * 13**2, True)[1]
    np.testing.assert_array_equal(scale_free, is_pruned)
    for image in (0, 3, 7):
        select = lambda tree: jax.tree.map(lambda leaf: leaf[image : image + 1], tree)
        alone = quick_jit(lambda t, s: ppt(t, s, 9, threshold))(select(tokens), select(signals))
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6), alone, select(reduced)
        )


def test_package_follows_the_text_and_stays_one_token():
    tokens, signals = random_case(3)
    once = package(tokens, signals, 8)
    twice = package(once, jax.tree.map(lambda x: x[:, :8], signals), 5)
    for image, (plain_tokens, attention, *_) in enumerate(images_of(tokens, signals)):
        expected, score = plain_package(plain_tokens, attention, 8)
        assert_tokens(once, expected, image, sizes=False)
        expected, total = plain_package(expected, attention[:8], 5, score)
        assert_tokens(twice, expected, image, sizes=False)
        np.testing.assert_allclose((once.package[image], twice.package[image]), (score, total), rtol=1e-5)


@pytest.mark.parametrize("num_keep, pruned_share", [(7, 0.5), (3, 0.0), (9, 1.0)])
def test_diffrate_follows_the_text(num_keep, pruned_share):
    tokens, signals = random_case(num_keep, sized=True)
    reduced = quick_jit(lambda t, s: diffrate(t, s, num_keep, pruned_share))(tokens, signals)
    for image, (plain_tokens, attention, *_) in enumerate(images_of(tokens, signals)):
        assert_tokens(reduced, plain_diffrate(plain_tokens, attention, num_keep, pruned_share), image)


@pytest.mark.parametrize("count, num_removed, sized", [(12, 5, True), (13, 6, False), (8, 1, True)])
def test_mctf_follows_the_text(count, num_removed, sized):
    tokens, signals = random_case(count, count, sized)
    reduced = compact_method("mctf", count - num_removed)(tokens, signals)
    for image, (plain_tokens, *_, received) in enumerate(images_of(tokens, signals)):
        assert_tokens(reduced, plain_mctf(plain_tokens, received, num_removed), image)


@pytest.mark.parametrize("side", [4, 5])
def test_cait_follows_the_text_and_keeps_a_grid(side):
    """All pairs of columns but one of each row, then the other columns, then a row of each column."""
    tokens, signals = random_case(side, 1 + side**2, sized=True)
    half = -(-side // 2)
    for steps in ([(side, half + 1)], [(side, half)], [(side, half), (side - 1, half)]):
        reduced = tokens
        for rows, columns in steps:
            reduced = compact_method("cait", 1 + rows * columns)(reduced, signals)
        for image, (plain_tokens, *_) in enumerate(images_of(tokens, signals)):
            grid = [plain_tokens[1 + row * side : 1 + (row + 1) * side] for row in range(side)]
            grid = plain_cait(grid, side - steps[0][1])
            if len(steps) == 2:
                grid = list(zip(*plain_cait(list(zip(*grid)), 1)))
            assert_tokens(reduced, [plain_tokens[0], *(token for row in grid for token in row)], image)


def test_rectangles_on_the_way_down():
    """14 x 14 -> 14 x 7 -> 7 x 7 (the paper's example), one column or row a step; half of a side at most."""
    table, patches = grids(14), 14**2
    assert {196, 98, 49, 28} <= set(table.patches) and table.patches[-1] == 1
    assert (np.diff(table.patches) < 0).all()
    counts = [rectangle_count(197, num_keep, patches) for num_keep in (197, 196, 180, 99, 2)]
    assert counts == [197, 197, 183, 99, 99]
    assert [rectangle_count(99, num_keep, patches) for num_keep in (98, 50, 1)] == [99, 50, 50]
    per_image = rectangle_count(jnp.asarray([197, 99, 15]), jnp.asarray([180, 1, 15]), patches)
    np.testing.assert_array_equal(per_image, [183, 50, rectangle_count(15, 15, patches)])


def test_prune_drops_the_least_attended():
    tokens, signals = random_case(4)
    reduced = prune(tokens, signals, 5)
    for image, (plain_tokens, attention, *_) in enumerate(images_of(tokens, signals)):
        order = [0] + sorted(range(1, len(plain_tokens)), key=lambda i: -attention[i])
        assert_tokens(reduced, [plain_tokens[i] for i in order[:5]], image, sizes=False)
