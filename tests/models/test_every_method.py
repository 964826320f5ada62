"""PRANCE's decisions drive every token method: masked is compact, no image sees another, what runs is counted."""

import jax
import numpy as np
import pytest
from small import SHORT, compact, make_spec, masked, noisy_params
from spec.test_macs import product_flops

from prance_jax.models.vit import ViT
from prance_jax.spec.macs import macs, token_counts
from prance_jax.tokens.methods.registry import METHODS

OTHERS = [name for name in METHODS if name not in ("prune", "merge", "prune_merge")]


@pytest.mark.parametrize("mode", OTHERS)
def test_masked_is_compact_and_counted(mode, images):
    spec = make_spec(mode, space=SHORT)
    params = noisy_params(spec)
    drawn = spec.space.sample(jax.random.key(1), len(images), ((0.3, 0.55, 0.8, 1.0),))
    outcome = masked(spec)(params, images, drawn)
    counts = token_counts(spec, drawn)
    np.testing.assert_array_equal(outcome.tokens.count, counts.mlp[-1])
    order = np.array([3, 0, 5, 1, 4, 2])
    shuffled = masked(spec)(params, images[order], jax.tree.map(lambda leaf: leaf[order], drawn))
    np.testing.assert_allclose(shuffled.logits, outcome.logits[order], rtol=1e-4, atol=1e-5)
    own = drawn.image(2)
    alone = compact(spec, params, images[2:3], own)
    scale = float(np.abs(alone.logits).max())
    np.testing.assert_allclose(outcome.logits[2], alone.logits[0], rtol=1e-4, atol=1e-5 * scale)
    np.testing.assert_array_equal(outcome.tokens.token_of_patch[2], alone.tokens.token_of_patch[0])

    # Traced and not counted: a row of attention from CLS in each layer, a glance of the classifier after each group.
    image = jax.ShapeDtypeStruct((1, spec.image_size, spec.image_size, 3), "float32")
    for index in range(len(images)):
        own = drawn.image(index)
        program = lambda params, image: ViT(spec).apply({"params": params}, image, own)
        reported = spec.space.attention_width * sum(token_counts(spec, own).attention)
        reported += spec.num_classes * sum(group.widths[-1] for group in own.groups)
        found = product_flops(jax.make_jaxpr(program)(params, image).jaxpr)
        assert found == 2 * (macs(spec, own).total + reported)
