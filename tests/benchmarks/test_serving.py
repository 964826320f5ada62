"""The even spread over buckets: each image is exactly as large as a bucket."""

import numpy as np
import pytest
from small import SPACE, make_spec

from prance_jax.adaptive.choose_buckets import even_buckets
from prance_jax.benchmarks.serving import even_spread
from prance_jax.spec.macs import macs
from prance_jax.spec.token_counts import tokens_after_layers


@pytest.mark.parametrize("mode", ["prune", "prune_merge"])
def test_every_image_is_as_large_as_a_bucket(mode):
    spec, batch = make_spec(mode), 40
    first = SPACE.first_group("max")
    buckets = even_buckets(spec, first, 3, 0.3)
    structure = even_spread(buckets, batch)
    counts = tokens_after_layers(spec, structure)
    kept = np.asarray(macs(spec, structure).total) / macs(spec, spec.largest).total
    assert kept.max() == pytest.approx(1) and kept.min() < 0.6
    arriving = np.full(batch, spec.tokens)
    for group, group_buckets in enumerate(buckets.groups, start=1):
        tokens = np.asarray(counts[SPACE.first_layers[group]])
        widths = np.asarray(structure.groups[group].widths[0])
        for width, tokens_after, before in zip(widths, tokens, arriving):
            assert any(
                bucket.widths[0] == width and min(bucket.tokens[-1], before) == tokens_after
                for bucket in group_buckets
            )
        assert set(widths) == {bucket.widths[0] for bucket in group_buckets}
        arriving = tokens
