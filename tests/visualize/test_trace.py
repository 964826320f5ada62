"""What the pictures show agrees with the network and with the MAC counters."""

import numpy as np
import pytest
from small import SPACE, make_spec, masked

from prance_jax.experiments.stage_runner import TableEntry
from prance_jax.selector.actions import ActionSpace
from prance_jax.selector.policies import RandomPolicy
from prance_jax.spec.macs import macs
from prance_jax.spec.structure import GroupChoice, Structure
from prance_jax.spec.token_counts import tokens_after_layers
from prance_jax.visualize.panels import easiest_and_hardest, spread_by_macs
from prance_jax.visualize.trace import trace_images


def test_a_trace_is_what_the_network_does(params, images):
    """Six images in batches of four, the last one padded; and a masked pass with the traced decisions."""
    spec = make_spec("prune_merge")
    policy = RandomPolicy(SPACE.first_group("max"), ActionSpace(SPACE, 2, ((0.5, 1.0), (0.6, 0.9))))
    trace = trace_images(TableEntry("random", spec, policy, params, 0.0, 1000), np.asarray(images), batch=4)
    starts, groups = (*SPACE.first_layers, SPACE.depth), []
    for group, (start, stop) in enumerate(zip(starts, starts[1:])):
        keep = tuple(trace.keep[:, group - 1].T) if group else ()
        groups.append(
            GroupChoice(tuple(trace.widths[:, start:stop].T), tuple(trace.mlp_dims[:, start:stop].T), keep)
        )
    structure = SPACE.check(Structure(tuple(groups)), 2)
    output = masked(spec)(params, images, structure)
    assert (trace.predicted == np.argmax(output.logits, axis=1)).all()
    assert (trace.tokens_of_patches[:, -1] == output.tokens.token_of_patch).all()
    full = macs(spec, spec.largest).total
    for index in range(6):
        image_structure = structure.image(index)
        assert trace.macs_kept[index] == pytest.approx(
            macs(spec, image_structure, 1000).total / full, rel=1e-5
        )
        counts = tokens_after_layers(spec, image_structure)
        assert list(trace.tokens[index]) == [
            spec.tokens,
            *(counts[layer] for layer in SPACE.first_layers[1:]),
        ]
    assert len(np.unique(trace.macs_kept)) > 1
    for tokens_of_patches, tokens in zip(
        trace.tokens_of_patches.reshape(-1, spec.patches), trace.tokens[:, 1:].ravel()
    ):
        assert len(set(tokens_of_patches) - {-1, 0}) == tokens - 1  # every token but CLS carries a patch


def test_which_images_are_shown():
    cost = np.array([0.5, 0.1, 0.9, 0.3, 0.7])
    assert list(spread_by_macs(cost, 3)) == [1, 0, 2] and len(spread_by_macs(cost, 99)) == 5
    easy, hard = easiest_and_hardest(cost, 16)
    assert list(easy) == [1, 3] and list(hard) == [2, 4]
