"""Distilled networks: token methods keep both class tokens, and both classify."""

import jax
import numpy as np
import pytest
from small import PAIR, compact, drawn_params, make_spec, masked, quick_jit, structures
from spec.test_macs import product_flops

from prance_jax.baselines.predictor_config import PredictorConfig
from prance_jax.baselines.predictor_vit import PredictorViT
from prance_jax.core.errors import UserError
from prance_jax.models.forward import init_params
from prance_jax.models.reduction import forward_reduced, reduction_at_macs
from prance_jax.models.token_steps import reduce_tokens
from prance_jax.models.vit import ViT
from prance_jax.spec.macs import count_parameters, macs
from prance_jax.spec.token_counts import token_counts, tokens_after_layers
from prance_jax.tokens.methods.registry import METHODS
from prance_jax.tokens.token_set import AttentionSignals, initial_tokens


@pytest.mark.parametrize("mode", METHODS)
def test_no_method_touches_the_class_tokens(mode):
    """At the lowest rate, though no token attends to the second and patches are similar to it."""
    features = jax.random.normal(jax.random.key(0), (3, 2 + 9, 4)).at[:, 5].set(1.0).at[:, 1].set(1.1)
    tokens = initial_tokens(features, num_prefix_tokens=2)
    assert tokens.token_of_patch[0].tolist() == list(range(2, 11))
    attention = jax.random.uniform(jax.random.key(1), (3, 11)).at[:, 1].set(0.0)
    signals = AttentionSignals(attention, features, attention, attention)
    spec = make_spec(mode, space=PAIR, distilled=True, image_size=12)
    assert spec.tokens == 11
    counts = spec.tokens_after(11, (0.05,) * spec.rates)
    reduce = lambda tokens, signals: reduce_tokens(spec, spec.method, tokens, signals, counts)
    tokens_after = quick_jit(reduce)(tokens, signals)
    # CLS, the distillation token, and as little as the method can leave of nine patches.
    least = {"tome": 7, "ppt": 7, "mctf": 7, "cait": 8}.get(mode, 3)
    assert tokens_after.features.shape[1] == counts[-1] == least
    np.testing.assert_array_equal(tokens_after.features[:, 1], features[:, 1])
    np.testing.assert_allclose(tokens_after.features[:, 0], features[:, 0], rtol=1e-6)
    assert set(np.unique(tokens_after.token_of_patch)) <= {-1, *range(2, least)}
    if tokens_after.size is not None:
        np.testing.assert_array_equal(tokens_after.size[:, :2], 1)


@pytest.mark.parametrize("mode", ["prune_merge", "mctf"])
def test_masked_equals_compact_and_the_floor_counts_both(mode, images):
    """Also if tokens merge before the attention (mctf)."""
    spec = make_spec(mode, space=PAIR, distilled=True)
    params, sampled = drawn_params(spec), structures(spec, 3)
    batch_output = masked(spec)(params, images, sampled)
    structure = sampled.image(1)
    output = compact(spec, params, images[1:2], structure)
    np.testing.assert_allclose(batch_output.logits[1], output.logits[0], rtol=1e-4, atol=1e-4)
    assert output.tokens.count == tokens_after_layers(spec, structure)[-1] >= 3
    assert (np.asarray(output.tokens.token_of_patch) != 1).all()
    # Traced but not counted in MACs: what decisions read, see test_every_method.
    program = lambda params, image: ViT(spec).apply({"params": params}, image, structure)
    decision_inputs = spec.space.attention_width * sum(token_counts(spec, structure).attention)
    decision_inputs += 2 * spec.num_classes * sum(group.widths[-1] for group in structure.groups)
    flops = product_flops(jax.make_jaxpr(program)(params, images[1:2]).jaxpr)
    assert flops == 2 * (macs(spec, structure).total + decision_inputs)


def test_logits_are_the_mean_of_both_classifiers(images):
    spec = make_spec("prune_merge", space=PAIR, distilled=True)
    params = drawn_params(spec)

    zero_head = jax.tree.map(np.zeros_like, params["head"])

    def run(**heads):
        return np.asarray(masked(spec)({**params, **heads}, images, structures(spec, 0)).logits)

    first, second = run(head_dist=zero_head), run(head=zero_head)
    np.testing.assert_allclose(run(), first + second, rtol=1e-5, atol=1e-5)
    assert np.abs(first).max() > 0.1 and np.abs(second).max() > 0.1


def test_macs_and_parameters_by_hand():
    """One more token in every product, one more classifier, one more token and position stored."""
    plain, distilled = (make_spec(space=PAIR, distilled=value) for value in (False, True))
    width, tokens = PAIR.max_width, plain.tokens
    inner = PAIR.attention_width
    added_macs = macs(distilled, distilled.largest).total - macs(plain, plain.largest).total
    per_layer = 4 * inner * width + 2 * inner * ((tokens + 1) ** 2 - tokens**2) + 2 * width * PAIR.max_mlp_dim
    assert added_macs == PAIR.depth * per_layer + (PAIR.groups - 1) * width * width + 5 * width
    added = 2 * width + (width + 1) * 5
    assert count_parameters(distilled, distilled.largest) - count_parameters(plain, plain.largest) == added
    shapes = [
        jax.eval_shape(lambda spec=spec: init_params(ViT(spec), jax.random.key(0)))
        for spec in (plain, distilled)
    ]
    stored = [sum(leaf.size for leaf in jax.tree.leaves(tree)) for tree in shapes]
    assert stored[1] - stored[0] == 2 * 32 + (32 + 1) * 5


def test_scheduled_reductions_keep_both_class_tokens(images):
    spec = make_spec(space=PAIR, distilled=True)
    params, model = drawn_params(spec), ViT(spec)
    nothing, some = (
        reduction_at_macs(spec, spec.largest, "tome", share * macs(spec, spec.largest).total)
        for share in (1, 0.55)
    )
    run = lambda reduction: quick_jit(lambda p, x: forward_reduced(model, p, x, spec.largest, reduction))(
        params, images
    )
    expected = quick_jit(lambda p, x: model.apply({"params": p}, x))(params, images)
    np.testing.assert_allclose(run(nothing).logits, expected, rtol=1e-5, atol=1e-5)
    reduced = run(some)
    assert reduced.tokens.features.shape[1] == some.tokens_after(spec)[-1] < spec.tokens
    np.testing.assert_array_equal(reduced.tokens.size[:, :2], 1)


def test_token_predictors_refuse_distilled_networks(images):
    spec = make_spec(space=PAIR, distilled=True)
    with pytest.raises(UserError, match="a distilled network has two"):
        PredictorViT(spec, PredictorConfig(True, (1,), (0.5,))).init(jax.random.key(0), images)
