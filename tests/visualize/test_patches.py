"""A panel: patches of one token look alike, others do not, and nothing else is painted over."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prance_jax.visualize.patches import ALONE, PRUNED, draw_kept, enlarge, group_colour, patch_groups

SIDE, GRID = 24, 4


@st.composite
def histories(draw):
    """Tokens of patches after three decisions that prune or merge tokens."""
    token_of_patch, rows = np.arange(1, GRID**2 + 1), []
    for _ in range(3):
        tokens = np.unique(token_of_patch[token_of_patch >= 0])
        kept_tokens = draw(st.integers(1, 8))
        moves = {token: draw(st.integers(-1, kept_tokens)) for token in tokens}
        token_of_patch = np.array([moves.get(token, -1) for token in token_of_patch])
        rows.append(token_of_patch)
    return np.stack(rows)


@given(histories())
def test_patches_share_a_number_exactly_where_one_token_carries_them(tokens_of_patches):
    for token_of_patch, numbers in zip(tokens_of_patches, patch_groups(tokens_of_patches)):
        assert ((numbers == PRUNED) == (token_of_patch < 0)).all()
        for patch, number in enumerate(numbers):
            together = (
                np.flatnonzero(token_of_patch == token_of_patch[patch]) if token_of_patch[patch] >= 0 else []
            )
            if number >= 0:
                assert list(np.flatnonzero(numbers == number)) == list(together) and len(together) > 1
            else:
                assert len(together) <= 1


def test_a_token_keeps_its_number():
    """Two pairs; the first then merges with a third patch, the second does not; at last both merge."""
    tokens_of_patches = np.array([[1, 1, 2, 2, 3, 4], [1, 1, 2, 2, 1, 3], [1, 1, 1, 1, 1, -1]])
    first, second, third = patch_groups(tokens_of_patches)
    assert first[0] == second[0] == second[4] == third[0] != first[2]
    assert first[2] == second[2] and third[2] == first[0] and third[5] == PRUNED
    assert list(first[4:]) == [ALONE, ALONE] and second[5] == ALONE


def test_twenty_groups_have_twenty_colours():
    colours = np.array([group_colour(group) for group in range(20)])
    far = np.linalg.norm(colours[:, None] - colours[None], axis=2) + 1e9 * np.eye(20)
    assert far.min() > 30 and colours.min() >= 0 and colours.max() <= 255


def test_a_panel():
    """Patch 0 pruned, 1 and 2 merged side by side, the others alone."""
    pixels = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    numbers = np.full(GRID**2, ALONE)
    numbers[0], numbers[1:3] = PRUNED, 0
    panel, patch = draw_kept(pixels, numbers), SIDE // GRID
    alone = np.kron(numbers.reshape(GRID, GRID), np.ones((patch, patch))) == ALONE
    assert (panel[alone] == pixels[alone]).all()
    assert panel[:patch, :patch].std() < 0.5 * pixels[:patch, :patch].std()
    tint = np.round(group_colour(0))
    assert (panel[0, patch : 3 * patch] == tint).all() and (panel[:patch, patch] == tint).all()
    # No line where the two meet.
    assert not (panel[2, 2 * patch - 1 : 2 * patch + 1] == tint).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_enlarging_is_exact(channels):
    image = np.random.default_rng(0).random((28, 28, channels))
    large = enlarge(image, side=100)
    assert large.shape == (112, 112, 3) and large.dtype == np.uint8
    assert (large[::4, ::4] == np.round(255 * image)).all()
