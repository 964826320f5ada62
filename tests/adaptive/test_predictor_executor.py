"""Token predictors in token buckets: the result of masked execution, image by image, and less is run."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import SHORT, make_spec, quick_jit

from prance_jax.adaptive.predictor_executor import choose_token_buckets, collect_token_counts, serve_predictor
from prance_jax.baselines.predictor_config import PredictorConfig
from prance_jax.baselines.predictor_vit import PredictorViT
from prance_jax.core.errors import UserError

SPEC = make_spec(space=SHORT)
BATCH = 13


@functools.lru_cache(maxsize=None)
def trained(package):
    """Weights under which images differ in what they keep."""
    model = PredictorViT(SPEC, PredictorConfig(package, (1, 3), (0.6, 0.3), 2, by_threshold=True))
    params = quick_jit(model.init)(jax.random.key(3), jnp.zeros((1, 16, 16, 3)))["params"]

    def noisy(path, leaf):
        # Without a bias of the decision, tokens of one image fall on both sides.
        if path[-1].key == "decide_bias":
            return leaf
        return leaf + 0.3 * jax.random.normal(jax.random.key(len(str(path))), leaf.shape)

    return model, jax.tree_util.tree_map_with_path(noisy, params)


@pytest.mark.parametrize("package", [True, False])
def test_served_is_masked(package):
    model, params = trained(package)
    images = jax.random.normal(jax.random.key(5), (BATCH, 16, 16, 3))
    expected = quick_jit(lambda p, x: model.apply({"params": p}, x))(params, images)
    tokens_after = np.stack([expected.tokens_after[layer] for layer in model.predictor.layers], axis=1)
    assert all(len(set(counts)) > 2 for counts in tokens_after.T)  # images differ
    np.testing.assert_array_equal(
        collect_token_counts(SPEC, model.predictor, params, np.asarray(images), batch=8), tokens_after
    )
    token_buckets = choose_token_buckets(SPEC, tokens_after, 2, multiple=2)
    traces = []

    def run(params, images):
        traces.append(1)
        return serve_predictor(SPEC, model.predictor, token_buckets, params, images, chunk=4)

    run = quick_jit(run)
    for order in (np.arange(BATCH), np.arange(BATCH)[::-1]):
        served = run(params, images[order])
        np.testing.assert_allclose(served.logits, expected.logits[order], rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(served.token_of_patch, expected.tokens.token_of_patch[order])
        for index, bounds in enumerate(token_buckets):
            np.testing.assert_array_equal(served.tokens_after[index], tokens_after[order, index])
            used = np.asarray(bounds)[np.asarray(served.bucket_used[index])]
            assert (used >= tokens_after[order, index]).all() and used.min() < SPEC.tokens
    assert len(traces) == 1
    # One image, one chunk: in the smallest token bucket that holds it.
    alone = quick_jit(lambda p, x: serve_predictor(SPEC, model.predictor, token_buckets, p, x, 4))(
        params, images[:1]
    )
    np.testing.assert_allclose(alone.logits, expected.logits[:1], rtol=1e-4, atol=1e-5)
    assert [int(used[0]) for used in alone.bucket_used] == [
        np.searchsorted(bounds, count) for bounds, count in zip(token_buckets, tokens_after[0])
    ]


def test_token_buckets_that_cost_least():
    """Two tight groups of images, and one that keeps everything: by hand."""
    tokens_after = np.array([3] * 10 + [4] * 10 + [11] * 5 + [12] * 5 + [17])[:, None]
    assert choose_token_buckets(SPEC, tokens_after, 3, multiple=4) == ((4, 12, 17),)
    assert choose_token_buckets(SPEC, tokens_after[:-1], 2, multiple=4) == ((4, 12, 17),)
    assert choose_token_buckets(SPEC, tokens_after[:20], 2, multiple=1) == ((3, 4, 17),)
    assert choose_token_buckets(SPEC, tokens_after[:1], 3, multiple=8) == ((8, 17),)


def test_what_does_not_fit_is_refused():
    by_threshold = PredictorConfig(False, (1, 3), (0.5, 0.3), by_threshold=True)
    serve = lambda predictor, token_buckets: serve_predictor(
        SPEC, predictor, token_buckets, {}, jnp.zeros((1, 16, 16, 3))
    )
    with pytest.raises(UserError, match="keep as many tokens of every image"):
        serve(PredictorConfig(False, (1,), (0.5,)), ((17,),))
    with pytest.raises(UserError, match="2 predictors need numbers of tokens each"):
        serve(by_threshold, ((17,),))
    with pytest.raises(UserError, match="last one 17 at least"):
        serve(by_threshold, ((4, 8), (17,)))
    with pytest.raises(UserError, match="must rise"):
        serve(by_threshold, ((8, 4, 17), (17,)))
