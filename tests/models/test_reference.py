"""The model equals an independent float64 implementation of the paper, on random structures."""

import numpy as np
import pytest
from models.reference import forward
from small import MODES, SPACE, compact, make_spec, masked, structures


@pytest.mark.parametrize("mode", MODES)
def test_masked_execution(mode, params, images):
    spec = make_spec(mode)
    for seed in range(20, 24):
        sampled = structures(spec, seed)
        outcome = masked(spec)(params, images, sampled)
        for index in range(len(images)):
            groups = [tuple(group) for group in sampled.image(index).groups]
            logits, members = forward(params, images[index], groups, mode=mode, heads=SPACE.heads, patch=4)
            scale = np.abs(logits).max()
            np.testing.assert_allclose(outcome.logits[index], logits, rtol=0, atol=2e-5 * scale)
            assert int(outcome.tokens.count[index]) == len(members)
            token_of_patch = np.full(spec.patches, -1)
            for token, group in enumerate(members):
                token_of_patch[[patch - 1 for patch in group if patch]] = token
            np.testing.assert_array_equal(outcome.tokens.token_of_patch[index], token_of_patch)
            np.testing.assert_array_equal(
                outcome.tokens.sizes[index, : len(members)], [len(group) for group in members]
            )


def test_compact_execution(params, images):
    spec = make_spec("prune_merge")
    structure = structures(spec, 30).image(0)
    expected, members = forward(
        params,
        images[0],
        [tuple(group) for group in structure.groups],
        mode="prune_merge",
        heads=SPACE.heads,
        patch=4,
    )
    outcome = compact(spec, params, images[:1], structure)
    np.testing.assert_allclose(outcome.logits[0], expected, rtol=0, atol=2e-5 * np.abs(expected).max())
    assert outcome.tokens.features.shape[1] == len(members)
