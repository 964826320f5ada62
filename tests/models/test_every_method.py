"""Decisions with every token method: masked equals compact, images are independent, MACs are exact."""

import jax
import numpy as np
import pytest
from small import SHORT, compact, make_spec, masked, noisy_params
from spec.test_macs import product_flops

from prance_jax.models.vit import ViT
from prance_jax.spec.macs import macs
from prance_jax.spec.token_counts import token_counts, tokens_after_layers
from prance_jax.tokens.methods.registry import METHODS

OTHERS = [name for name in METHODS if name not in ("prune", "merge", "prune_merge")]


@pytest.mark.parametrize("mode", OTHERS)
def test_masked_equals_compact_and_macs_are_exact(mode, images):
    spec = make_spec(mode, space=SHORT)
    params = noisy_params(spec)
    sampled = spec.space.sample(jax.random.key(1), len(images), ((0.3, 0.55, 0.8, 1.0),))
    outcome = masked(spec)(params, images, sampled)
    np.testing.assert_array_equal(outcome.tokens.count, tokens_after_layers(spec, sampled)[-1])
    order = np.array([3, 0, 5, 1, 4, 2])
    shuffled = masked(spec)(params, images[order], jax.tree.map(lambda leaf: leaf[order], sampled))
    np.testing.assert_allclose(shuffled.logits, outcome.logits[order], rtol=1e-4, atol=1e-5)
    single = compact(spec, params, images[2:3], sampled.image(2))
    scale = float(np.abs(single.logits).max())
    np.testing.assert_allclose(outcome.logits[2], single.logits[0], rtol=1e-4, atol=1e-5 * scale)
    np.testing.assert_array_equal(outcome.tokens.token_of_patch[2], single.tokens.token_of_patch[0])

    # Traced but not counted in MACs: attention from CLS in each layer, early logits after each group.
    image = jax.ShapeDtypeStruct((1, spec.image_size, spec.image_size, 3), "float32")
    for index in range(len(images)):
        structure = sampled.image(index)
        program = lambda params, image: ViT(spec).apply({"params": params}, image, structure)
        decision_inputs = spec.space.attention_width * sum(token_counts(spec, structure).attention)
        decision_inputs += spec.num_classes * sum(group.widths[-1] for group in structure.groups)
        flops = product_flops(jax.make_jaxpr(program)(params, image).jaxpr)
        assert flops == 2 * (macs(spec, structure).total + decision_inputs)
