"""Buckets cover the decisions, are nested, and cost as little as any cut of the images makes possible."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small import SPACE, make_spec, structures

from prance_jax.adaptive.buckets import Bucket, Buckets, bucket_sizes
from prance_jax.adaptive.choose_buckets import cheapest_cuts, choose_buckets, even_buckets
from prance_jax.core.errors import UserError
from prance_jax.spec.token_counts import token_counts, tokens_after_layers

FIRST = SPACE.first_group("24x2")


def random_decisions(spec, seed, batch):
    structure = structures(spec, seed, batch)
    return structure._replace(groups=(FIRST, *structure.groups[1:]))


@given(st.lists(st.tuples(st.integers(1, 30), st.integers(1, 5)), min_size=2, max_size=9), st.integers(1, 4))
def test_the_cuts_are_the_best(rows, number):
    steps, images = np.array(rows).T
    costs = np.cumsum(steps)
    last = len(costs) - 1

    def total(cuts):
        return sum(
            costs[end] * images[previous + 1 : end + 1].sum() for previous, end in zip((-1, *cuts), cuts)
        )

    cuts = cheapest_cuts(costs, images, number)
    assert len(cuts) <= number and cuts[-1] == last and list(cuts) == sorted(set(cuts))
    candidates = (
        (*inner, last) for k in range(number) for inner in itertools.combinations(range(last), min(k, last))
    )
    assert total(cuts) == min(map(total, candidates))


@pytest.mark.parametrize("mode", ["prune", "prune_merge"])
def test_every_image_fits_into_its_bucket_and_not_into_a_smaller_one(mode):
    spec = make_spec(mode)
    buckets = choose_buckets(spec, random_decisions(spec, 0, 60), 3, multiple=2)
    others = random_decisions(spec, 1, 40)
    counts = token_counts(spec, others)
    for group in range(1, SPACE.groups):
        assert 1 <= len(buckets.groups[group - 1]) <= 4
        arriving = jnp.broadcast_to(counts.attention[SPACE.first_layers[group]], 40)
        index = np.asarray(buckets.index(group, others.groups[group], arriving))
        sizes = np.stack(
            [np.broadcast_to(x, 40) for x in bucket_sizes(spec, others.groups[group], arriving)], axis=1
        )
        for image, bucket in enumerate(index):
            assert (sizes[image] <= buckets.groups[group - 1][bucket].sizes).all()
            if bucket:
                assert (sizes[image] > buckets.groups[group - 1][bucket - 1].sizes).any()


def test_tokens_are_rounded_to_what_hardware_likes():
    spec = make_spec("prune")
    for buckets in choose_buckets(spec, random_decisions(spec, 2, 60), 3, multiple=4).groups:
        assert all(bucket.tokens[0] % 4 == 0 or bucket.tokens[0] == spec.tokens for bucket in buckets)


def test_one_decision_for_all_makes_one_bucket_of_its_size():
    spec = make_spec("prune")
    alike = jax.tree.map(lambda leaf: jnp.full(20, leaf), SPACE.uniform(24, 2, (0.55,)))
    alike = alike._replace(groups=(FIRST, *alike.groups[1:]))
    buckets = choose_buckets(spec, alike, 3, multiple=1)
    tokens_after = tokens_after_layers(spec, SPACE.uniform(24, 2, (0.55,)))
    for group in range(1, SPACE.groups):
        smallest, covering = buckets.groups[group - 1]
        layers = SPACE.layers[group]
        assert smallest == Bucket((24,) * layers, (48,) * layers, (tokens_after[SPACE.first_layers[group]],))
        assert covering == Bucket((28,) * layers, (84,) * layers, (spec.tokens,))


def test_even_buckets_go_from_the_smallest_choice_to_the_largest():
    spec = make_spec("merge")
    buckets = even_buckets(spec, FIRST, 4, 0.3)
    for group, layers in zip(buckets.groups, SPACE.layers[1:]):
        assert group[0].widths == group[0].mlp_dims == (16,) * layers
        assert group[-1] == Bucket((28,) * layers, (84,) * layers, (spec.tokens,))
    assert buckets.groups[-1][0].tokens == (int(0.3 * spec.tokens),)


def test_buckets_that_are_not_nested_are_refused():
    spec = make_spec("prune")
    wide, narrow = Bucket((28, 28), (56, 56), (9,)), Bucket((24, 24), (48, 48), (12,))
    with pytest.raises(UserError, match="group 2 are not nested"):
        Buckets(spec, FIRST, ((narrow,), (wide, narrow), (narrow,)))
