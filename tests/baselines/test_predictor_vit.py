"""Token predictors: training equals evaluation at the same decisions, which are sampled in training only."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import SHORT, make_spec, quick_jit

from prance_jax.baselines import token_predictor
from prance_jax.baselines.predictor_config import PredictorConfig, predictor_at_share
from prance_jax.baselines.predictor_vit import PredictorViT
from prance_jax.baselines.token_predictor import TokenPredictor, predictor_macs
from prance_jax.core.errors import UserError
from prance_jax.models.attention import dot_product_attention
from prance_jax.spec.model_spec import ModelSpec
from prance_jax.spec.search_space import SPACES

LAYERS = (1, 3)


def network(package, images, heads=2, **changes):
    spec = make_spec(space=SHORT)
    model = PredictorViT(spec, PredictorConfig(package, LAYERS, (0.6, 0.3), heads, **changes))
    params = quick_jit(model.init)(jax.random.key(3), images[:1])["params"]
    noisy = lambda path, leaf: leaf + 0.3 * jax.random.normal(jax.random.key(len(str(path))), leaf.shape)
    return model, jax.tree_util.tree_map_with_path(noisy, params)


def plain_predictor(params, x, is_kept):
    """Log-probabilities and probability of each token of one image, one token and head at a time."""
    from math import erf

    gelu = lambda v: np.array([t * (1 + erf(t / 2**0.5)) / 2 for t in v])
    heads, inner = params["norm_scale"].shape
    embedded = []
    for token in x.reshape(len(x), heads, inner):
        embedded.append([])
        for h, part in enumerate(token):
            part = (part - part.mean()) / np.sqrt(part.var() + 1e-6)
            part = part * params["norm_scale"][h] + params["norm_bias"][h]
            embedded[-1].append(gelu(part @ params["embed_kernel"][h] + params["embed_bias"][h]))
    result = []
    for n, token in enumerate(x.reshape(len(x), heads, inner)):
        log_probs, probs = [], []
        for h in range(heads):
            mean = sum(w * e[h][inner // 2 :] for w, e in zip(is_kept, embedded)) / sum(is_kept)
            z = np.concatenate([embedded[n][h][: inner // 2], mean])
            for name in ("first", "second"):
                z = gelu(z @ params[f"{name}_kernel"][h] + params[f"{name}_bias"][h])
            z = z @ params["decide_kernel"][h] + params["decide_bias"][h]
            log_probs.append(z - np.log(np.exp(z).sum()))
            probs.append(np.exp(log_probs[-1]))
        means = np.array([part.mean() for part in token])
        a = gelu(means @ params["squeeze"]["kernel"] + params["squeeze"]["bias"])
        a = 1 / (1 + np.exp(-(a @ params["excite"]["kernel"] + params["excite"]["bias"])))
        result.append((a @ np.array(log_probs) / a.sum(), a @ np.array(probs)[:, 0] / a.sum()))
    return result


def test_the_predictor_follows_the_paper():
    rng = np.random.default_rng(0)
    x, is_kept = rng.normal(size=(1, 5, 16)).astype(np.float32), np.array([[1, 0, 1, 1, 1]], np.float32)
    predictor = TokenPredictor(16, 2)
    params = predictor.init(jax.random.key(0), x, is_kept)["params"]
    params = jax.tree.map(lambda leaf: leaf + 0.2 * rng.normal(size=leaf.shape).astype(np.float32), params)
    log_probs, keep = predictor.apply({"params": params}, x, is_kept)
    expected = plain_predictor(jax.tree.map(np.asarray, params), x[0].astype(float), is_kept[0])
    for n, (expected_log_probs, expected_keep) in enumerate(expected):
        np.testing.assert_allclose(log_probs[0, n], expected_log_probs, rtol=1e-4, atol=1e-5)
        assert float(keep[0, n]) == pytest.approx(expected_keep, rel=1e-4)
    # The heads have separate weights.
    kernel = params["decide_kernel"]
    assert kernel.shape[0] == 2 and float(jnp.abs(kernel[0] - kernel[1]).max()) > 0.01


@pytest.mark.parametrize("package", [True, False])
def test_masked_training_is_evaluation_with_the_same_decisions(package, images, monkeypatch):
    """If training takes the more likely decision, its result is that of evaluation by threshold."""
    more_likely = lambda log_probs, key: (log_probs[..., 0] > log_probs[..., 1]).astype(jnp.float32)
    monkeypatch.setattr(token_predictor, "gumbel_keep_mask", more_likely)
    model, params = network(package, images, heads=1, by_threshold=True)
    run = quick_jit(lambda p, x, k: model.apply({"params": p}, x, k, method="train"))
    trained = run(params, images, jax.random.key(0))
    logits, tokens, tokens_after = quick_jit(lambda p, x: model.apply({"params": p}, x))(params, images)
    np.testing.assert_allclose(trained.logits, logits, rtol=1e-4, atol=1e-4)
    num_kept = np.asarray(trained.is_kept).sum(1)
    assert len(set(num_kept)) > 1  # images keep different numbers of tokens
    has_token = np.asarray(tokens.token_of_patch) >= 0
    if not package:
        np.testing.assert_array_equal(has_token, np.asarray(trained.is_kept) > 0.5)
        np.testing.assert_array_equal(tokens.count, 1 + num_kept)
    # The MACs of an image depend on its tokens.
    total = model.predictor.macs(model.spec, tokens_after).total
    assert len(set(np.asarray(total).tolist())) > 1
    same = tuple(jnp.full(6, count) for count in model.predictor.tokens_after(model.spec))
    exact = model.predictor.macs(model.spec).total
    np.testing.assert_allclose(model.predictor.macs(model.spec, same).total, exact, rtol=1e-6)


def test_evaluation_drops_tokens_without_sampling(images):
    model, params = network(True, images)
    run = quick_jit(lambda p, x: model.apply({"params": p}, x))
    logits, tokens, tokens_after = run(params, images)
    assert tokens_after == model.predictor.tokens_after(model.spec)
    # 16 patches: round(0.6 x 16) = 10 and a package, round(0.3 x 16) = 5 and the package.
    assert model.predictor.tokens_after(model.spec) == (17, 12, 12, 7)
    assert tokens.features.shape[1] == 7 and tokens.package.shape == (6,)
    np.testing.assert_array_equal(logits, run(params, images)[0])
    order = np.array([3, 0, 5, 1, 4, 2])
    np.testing.assert_allclose(run(params, images[order])[0], logits[order], rtol=1e-5, atol=1e-5)


def test_everything_kept_is_the_network(images):
    model, params = network(True, images)
    all_kept = PredictorViT(model.spec, PredictorConfig(True, LAYERS, (1.0, 1.0), 2))
    expected, _ = quick_jit(lambda p, x: model.apply({"params": p}, x, method="features"))(params, images)
    actual, *_ = quick_jit(lambda p, x: all_kept.apply({"params": p}, x))(params, images)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


def test_decisions_have_a_gradient(images):
    model, params = network(True, images)

    def loss(params):
        out = model.apply({"params": params}, images, jax.random.key(1), method="train")
        return jnp.sum(jnp.sin(out.logits))

    gradients = quick_jit(jax.grad(loss))(params)
    for layer in LAYERS:
        assert float(jnp.abs(gradients[f"selector_{layer}"]["decide_kernel"]).max()) > 0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


def test_macs_as_published():
    """DynamicViT at 0.7 on DeiT-S and -B has 2.92 and 11.2 GMACs.

    The authors count 5/8 N C^2 + N C / 2 for a predictor; they leave out one matrix, C x C.
    """
    for size, published in (("deit_small", 2.92), ("deit_base", 11.2)):
        spec = ModelSpec(SPACES[size], image_size=224, patch_size=16, num_classes=1000, full_last_layer=True)
        config = PredictorConfig(False, (3, 6, 9), (0.7, 0.49, 0.343))
        actual, width, tokens_after = config.macs(spec), spec.space.super_width, config.tokens_after(spec)
        counts = [tokens_after[layer - 1] - 1 for layer in config.layers]
        ours = sum(predictor_macs(count, width, 1) for count in counts)
        theirs = sum(5 * count * width**2 // 8 + count * width // 2 for count in counts)
        assert ours - theirs == sum(count * width**2 for count in counts)
        total = actual.total - actual.residual_maps + theirs - ours
        assert total / 1e9 == pytest.approx(published, abs=0.05 if size == "deit_small" else 0.25)


def test_a_share_is_met():
    spec = ModelSpec(SPACES["deit_small"], image_size=224, patch_size=16, num_classes=1000)
    from prance_jax.spec.macs import macs

    for share in (0.5, 0.7):
        predictor = predictor_at_share(spec, True, share, heads=6)
        assert predictor.macs(spec).total / macs(spec, spec.largest).total == pytest.approx(share, abs=0.01)


def test_wrong_predictors_are_refused():
    with pytest.raises(UserError, match="one share of keep_rates"):
        PredictorConfig(True, (3, 6), (0.5,))
    with pytest.raises(UserError, match="never rise"):
        PredictorConfig(True, (3, 6), (0.5, 0.6))


def test_hidden_keys_have_a_bounded_gradient():
    """A hidden key does not change attention, even if its logit leads by 60.

    The gradient of its policy is at most what it changes when it is shown, not e^60 times that.
    """
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.normal(size=(1, 1, 4, 2)), jnp.float32) for _ in range(3))
    q = q.at[..., 0].set(1.0)
    k = k.at[0, 0, 3].set(jnp.array([60 * 2**0.5, 0.0]))
    policy = jnp.array([[1.0, 1.0, 1.0, 0.0]])
    mixed = dot_product_attention(q, k, v, None, policy)[0, 0, :3]
    np.testing.assert_allclose(
        mixed, dot_product_attention(q[:, :, :3], k[:, :, :3], v[:, :, :3], None)[0, 0], rtol=1e-5
    )
    jacobian = jax.jacobian(lambda policy: dot_product_attention(q, k, v, None, policy)[0, 0, :3])(policy)
    gradient, bound = jnp.abs(jacobian[:, :, 0, 3]), jnp.abs(v[0, 0, 3] - mixed)
    assert bool(jnp.all(gradient <= bound + 1e-5)) and float(gradient.max()) > 0.1 * float(bound.max())
    with_policy = jax.grad(
        lambda q: jnp.sum(jnp.sin(dot_product_attention(q, k, v, None, policy)[0, 0, :3]))
    )(q)
    without_key = jax.grad(
        lambda q: jnp.sum(jnp.sin(dot_product_attention(q, k[:, :, :3], v[:, :, :3], None)[0, 0]))
    )(q[:, :, :3])
    np.testing.assert_allclose(with_policy[:, :, :3], without_key, rtol=1e-4, atol=1e-6)
