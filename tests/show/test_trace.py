"""What the pictures tell agrees with the network and with the counters."""

import jax
import numpy as np
import pytest
from small import SPACE, make_spec

from prance_jax.complexity import macs, token_counts
from prance_jax.models.vit import ViT
from prance_jax.models.walk import walk
from prance_jax.selector.actions import ActionSpace
from prance_jax.selector.decide import RandomRule
from prance_jax.show.shown import ends, spread
from prance_jax.show.trace import trace
from prance_jax.training.experiment import Contender


def test_a_trace_is_what_the_walk_does(params, images):
    """Five images in batches of four: the last is filled up and cut."""
    spec = make_spec("prune_merge")
    rule = RandomRule(SPACE.first_group("max"), ActionSpace(SPACE, 2, ((0.5, 1.0), (0.6, 0.9))))
    found = trace(Contender("random", spec, rule, params, 0.0, 1000), np.asarray(images[:5]), batch=4)
    key = jax.random.fold_in(jax.random.key(0), 0)
    outcome = jax.jit(
        lambda p, x: walk(ViT(spec), p, x, rule.first, rule.decide(0.0, key)),
    )(params, images[:4])
    assert (found.predicted[:4] == np.argmax(outcome.logits, axis=1)).all() and len(found.predicted) == 5
    assert (found.owners[:4, -1] == outcome.tokens.owner).all()
    for index in range(4):
        own = outcome.structure.image(index)
        assert tuple(found.widths[index]) == own.widths and tuple(found.hidden[index]) == own.hidden
        full = macs(spec, spec.largest).total
        assert found.macs_kept[index] == pytest.approx(macs(spec, own, 1000).total / full, rel=1e-5)
        counts = token_counts(spec, own).mlp
        assert list(found.tokens[index]) == [
            spec.tokens,
            *(counts[layer] for layer in SPACE.first_layers[1:]),
        ]
    for owners, tokens in zip(found.owners.reshape(-1, spec.patches), found.tokens[:, 1:].ravel()):
        assert len(set(owners) - {-1, 0}) == tokens - 1  # every token but CLS carries a patch


def test_which_images_are_shown():
    cost = np.array([0.5, 0.1, 0.9, 0.3, 0.7])
    assert list(spread(cost, 3)) == [1, 0, 2] and len(spread(cost, 99)) == 5
    easy, hard = ends(cost, 16)
    assert list(easy) == [1, 3] and list(hard) == [2, 4]
