"""Two class tokens: the second is as safe as the first, and both classify."""

import jax
import numpy as np
import pytest
from small import PAIR, compact, drawn_params, make_spec, masked, quick_jit, structures
from spec.test_macs import product_flops

from prance_jax.baselines.predictor_config import PredictorConfig
from prance_jax.baselines.predictor_vit import PredictorViT
from prance_jax.core.errors import UserError
from prance_jax.models.forward import init_params
from prance_jax.models.reduction import at_macs, forward_reduced
from prance_jax.models.token_steps import reduce_tokens
from prance_jax.models.vit import ViT
from prance_jax.spec.macs import macs, parameters, token_counts
from prance_jax.tokens.methods.registry import METHODS
from prance_jax.tokens.token_set import AttentionSignals, initial_tokens


@pytest.mark.parametrize("mode", METHODS)
def test_no_method_touches_the_class_tokens(mode):
    """Neither gone nor changed, at the lowest rate, though nobody attends to the second and patches resemble it."""
    features = jax.random.normal(jax.random.key(0), (3, 2 + 9, 4)).at[:, 5].set(1.0).at[:, 1].set(1.1)
    tokens = initial_tokens(features, class_tokens=2)
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
def test_masked_is_compact_and_the_floor_counts_both(mode, images):
    """Also where the tokens merge before the attention."""
    spec = make_spec(mode, space=PAIR, distilled=True)
    params, drawn = drawn_params(spec), structures(spec, 3)
    every = masked(spec)(params, images, drawn)
    own = drawn.image(1)
    alone = compact(spec, params, images[1:2], own)
    np.testing.assert_allclose(every.logits[1], alone.logits[0], rtol=1e-4, atol=1e-4)
    assert alone.tokens.count == token_counts(spec, own).mlp[-1] >= 3
    assert (np.asarray(alone.tokens.token_of_patch) != 1).all()
    # Traced and not counted: what is told for decisions, see test_every_method.
    program = lambda params, image: ViT(spec).apply({"params": params}, image, own)
    reported = spec.space.attention_width * sum(token_counts(spec, own).attention)
    reported += 2 * spec.num_classes * sum(group.widths[-1] for group in own.groups)
    found = product_flops(jax.make_jaxpr(program)(params, images[1:2]).jaxpr)
    assert found == 2 * (macs(spec, own).total + reported)


def test_logits_are_the_mean_of_both_classifiers(images):
    spec = make_spec("prune_merge", space=PAIR, distilled=True)
    params = drawn_params(spec)

    silent = jax.tree.map(np.zeros_like, params["head"])

    def run(**heads):
        return np.asarray(masked(spec)({**params, **heads}, images, structures(spec, 0)).logits)

    first, second = run(head_dist=silent), run(head=silent)
    np.testing.assert_allclose(run(), first + second, rtol=1e-5, atol=1e-5)
    assert np.abs(first).max() > 0.1 and np.abs(second).max() > 0.1


def test_its_cost_is_counted_by_hand():
    """One more token in every product, one more classifier, one more token and position stored."""
    one, two = (make_spec(space=PAIR, distilled=own) for own in (False, True))
    width, tokens = PAIR.max_width, one.tokens
    inner = PAIR.attention_width
    found = macs(two, two.largest).total - macs(one, one.largest).total
    each = 4 * inner * width + 2 * inner * ((tokens + 1) ** 2 - tokens**2) + 2 * width * PAIR.max_mlp_dim
    assert found == PAIR.depth * each + (PAIR.groups - 1) * width * width + 5 * width
    more = 2 * width + (width + 1) * 5
    assert parameters(two, two.largest) - parameters(one, one.largest) == more
    shapes = [
        jax.eval_shape(lambda spec=spec: init_params(ViT(spec), jax.random.key(0))) for spec in (one, two)
    ]
    stored = [sum(leaf.size for leaf in jax.tree.leaves(own)) for own in shapes]
    assert stored[1] - stored[0] == 2 * 32 + (32 + 1) * 5


def test_reductions_under_a_schedule_leave_it_alone(images):
    spec = make_spec(space=PAIR, distilled=True)
    params, model = drawn_params(spec), ViT(spec)
    nothing, some = (
        at_macs(spec, spec.largest, "tome", share * macs(spec, spec.largest).total) for share in (1, 0.55)
    )
    run = lambda own: quick_jit(lambda p, x: forward_reduced(model, p, x, spec.largest, own))(params, images)
    wanted = quick_jit(lambda p, x: model.apply({"params": p}, x))(params, images)
    np.testing.assert_allclose(run(nothing).logits, wanted, rtol=1e-5, atol=1e-5)
    found = run(some)
    assert found.tokens.features.shape[1] == some.tokens_after(spec)[-1] < spec.tokens
    np.testing.assert_array_equal(found.tokens.size[:, :2], 1)


def test_learned_selectors_refuse_it(images):
    spec = make_spec(space=PAIR, distilled=True)
    with pytest.raises(UserError, match="a distilled network has two"):
        PredictorViT(spec, PredictorConfig(True, (1,), (0.5,))).init(jax.random.key(0), images)
