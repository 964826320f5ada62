"""Search spaces and structures: valid choices, and errors for invalid ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import KEEP, SPACE, make_spec

from prance_jax.core.errors import UserError
from prance_jax.spec.search_space import SPACES, SearchSpace
from prance_jax.spec.structure import GroupChoice


def changed(structure, group, **fields):
    groups = list(structure.groups)
    groups[group] = groups[group]._replace(**fields)
    return structure._replace(groups=tuple(groups))


BAD = [
    (dict(group=1, widths=(16, 20)), "group 1, layer 1: width 20 is not in the search space .* choose from"),
    (dict(group=2, mlp_dims=(16, 17)), "group 2, layer 1: 17 hidden units at width 16; choose from"),
    (dict(group=2, keep=(0.0,)), "group 2: keep rate 0.0 is not a share"),
    (dict(group=2, keep=(float("nan"),)), "group 2: keep rate nan is not a share"),
    (dict(group=3, keep=(1.2,)), "group 3: keep rate 1.2"),
    (dict(group=3, keep=()), "group 3 has 0 keep rates, needs 1"),
    (dict(group=0, keep=(0.5,)), "group 0 has 1 keep rates, needs 0"),
    (dict(group=1, widths=(16,)), "group 1 has 1 widths"),
]


@pytest.mark.parametrize("change, words", BAD)
def test_a_structure_outside_the_space_is_refused(change, words):
    with pytest.raises(UserError, match=words):
        SPACE.check(changed(SPACE.smallest((0.5,)), **change), rates=1)


def test_per_image_structures_are_checked_too():
    sampled = SPACE.sample(jax.random.key(0), 5, (KEEP,))
    assert SPACE.check(sampled, rates=1) is sampled
    bad = changed(sampled, 2, keep=(jnp.array([0.5, 0.5, -1.0, 0.5, 0.5]),))
    with pytest.raises(UserError, match="group 2: keep rate -1.0"):
        SPACE.check(bad, rates=1)


def test_all_tokens_is_allowed_and_groups_are_counted():
    assert SPACE.check(SPACE.largest(), rates=1).static
    with pytest.raises(UserError, match="has 3 groups, search space 'small test' has 4"):
        SPACE.check(SPACE.largest()._replace(groups=SPACE.largest().groups[:3]), rates=1)


SPACE_FAULTS = [
    (dict(widths=(24, 16)), "widths=.* must be positive, ascending"),
    (dict(widths=()), "widths="),
    (dict(widths=(16, 64)), "go up to 64, but the weights stop at 32"),
    (dict(ratios=(1, 4)), "go up to 4, but the weights stop at 3"),
    (dict(layers=(2, 1, 2)), "needs a layer in the first and last group and two in the others"),
    (dict(layers=()), "layers="),
]


@pytest.mark.parametrize("change, words", SPACE_FAULTS)
def test_a_space_that_does_not_fit_is_refused(change, words):
    fields = dict(
        name="bad", super_width=32, super_ratio=3, heads=2, widths=(16, 24), ratios=(1, 2), layers=(2, 2)
    )
    with pytest.raises(UserError, match=words):
        SearchSpace(**{**fields, **change})


def test_first_group_by_name():
    assert SPACE.first_group("min") == GroupChoice((16,), (16,))
    assert SPACE.first_group("24x2") == GroupChoice((24,), (48,))
    with pytest.raises(UserError, match="first group '20x2' .* choose from min, max, 16x1"):
        SPACE.first_group("20x2")


def test_samples_lie_in_the_space_and_cover_it():
    sampled = SPACE.sample(jax.random.key(0), 4000, (KEEP,))
    SPACE.check(sampled, rates=1)
    for width in sampled.widths:
        np.testing.assert_allclose(
            np.bincount(np.asarray(width))[list(SPACE.widths)] / 4000, 1 / 3, atol=0.03
        )
    for (keep,) in sampled.keep:
        _, counts = np.unique(np.asarray(keep), return_counts=True)
        np.testing.assert_allclose(counts / 4000, 1 / 4, atol=0.03)
    # Layers are sampled independently, as the selector chooses them.
    assert abs(np.corrcoef(np.asarray(sampled.widths[2]), np.asarray(sampled.widths[3]))[0, 1]) < 0.1


def test_ratio_of_three_and_a_half_counts_whole_units():
    assert SPACES["small"].mlp_dim(416, 3.5) == 1456
    assert int(SPACES["small"].mlp_dim(jnp.int32(416), 3.5)) == 1456


def test_a_structure_prints_readably():
    two_layers, one_layer = "[16/32 16/32 keep 0.5]", "[16/32 keep 0.5]"
    assert str(SPACE.uniform(16, 2, (0.5,))) == f"[16/32] {two_layers} {two_layers} {one_layer}"


@pytest.mark.parametrize(
    "change, words",
    [
        (dict(image_size=15), "image size 15 is not a multiple of patch size 4"),
        (dict(dtype="float16"), "dtype = 'float16' is not known; choose one of 'float32', 'bfloat16'"),
    ],
)
def test_a_spec_that_cannot_be_built_is_refused(change, words):
    with pytest.raises(UserError, match=words):
        make_spec(**change)
