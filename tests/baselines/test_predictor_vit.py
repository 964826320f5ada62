"""Learned selectors: the trained and the evaluated network are one, decisions are drawn in training only."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import SHORT, make_spec, quick_jit

from prance_jax.baselines import predictor_vit
from prance_jax.baselines.predictor_config import PredictorConfig, predictor_at_share
from prance_jax.baselines.predictor_vit import PredictorViT
from prance_jax.baselines.token_predictor import TokenPredictor, predictor_macs
from prance_jax.core.errors import UserError
from prance_jax.models.attention import dot_product_attention
from prance_jax.spec.model_spec import ModelSpec
from prance_jax.spec.search_space import SPACES

SITES = (1, 3)


def network(package, images, heads=2, **changes):
    spec = make_spec(space=SHORT)
    model = PredictorViT(spec, PredictorConfig(package, SITES, (0.6, 0.3), heads, **changes))
    params = quick_jit(model.init)(jax.random.key(3), images[:1])["params"]
    noisy = lambda path, leaf: leaf + 0.3 * jax.random.normal(jax.random.key(len(str(path))), leaf.shape)
    return model, jax.tree_util.tree_map_with_path(noisy, params)


def plain_selector(params, x, is_kept):
    """One image, one token, one head at a time."""
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
        logs, chances = [], []
        for h in range(heads):
            mean = sum(w * e[h][inner // 2 :] for w, e in zip(is_kept, embedded)) / sum(is_kept)
            z = np.concatenate([embedded[n][h][: inner // 2], mean])
            for name in ("first", "second"):
                z = gelu(z @ params[f"{name}_kernel"][h] + params[f"{name}_bias"][h])
            z = z @ params["decide_kernel"][h] + params["decide_bias"][h]
            logs.append(z - np.log(np.exp(z).sum()))
            chances.append(np.exp(logs[-1]))
        means = np.array([part.mean() for part in token])
        a = gelu(means @ params["squeeze"]["kernel"] + params["squeeze"]["bias"])
        a = 1 / (1 + np.exp(-(a @ params["excite"]["kernel"] + params["excite"]["bias"])))
        result.append((a @ np.array(logs) / a.sum(), a @ np.array(chances)[:, 0] / a.sum()))
    return result


def test_the_selector_follows_the_text():
    rng = np.random.default_rng(0)
    x, is_kept = rng.normal(size=(1, 5, 16)).astype(np.float32), np.array([[1, 0, 1, 1, 1]], np.float32)
    selector = TokenPredictor(16, 2)
    params = selector.init(jax.random.key(0), x, is_kept)["params"]
    params = jax.tree.map(lambda leaf: leaf + 0.2 * rng.normal(size=leaf.shape).astype(np.float32), params)
    chances, keep = selector.apply({"params": params}, x, is_kept)
    plain = plain_selector(jax.tree.map(np.asarray, params), x[0].astype(float), is_kept[0])
    for n, (log, kept) in enumerate(plain):
        np.testing.assert_allclose(chances[0, n], log, rtol=1e-4, atol=1e-5)
        assert float(keep[0, n]) == pytest.approx(kept, rel=1e-4)
    # Weights of the heads are their own: another one in head 1 leaves head 0's part of the network alone.
    kernel = params["decide_kernel"]
    assert kernel.shape[0] == 2 and float(jnp.abs(kernel[0] - kernel[1]).max()) > 0.01


@pytest.mark.parametrize("package", [True, False])
def test_masked_training_is_evaluation_with_the_same_decisions(package, images, monkeypatch):
    """Where training would take what is more likely, it runs the network that is served, token for token."""
    likely = lambda chances, key: (chances[..., 0] > chances[..., 1]).astype(jnp.float32)
    monkeypatch.setattr(predictor_vit, "gumbel_keep_mask", likely)
    model, params = network(package, images, heads=1, by_threshold=True)
    run = quick_jit(lambda p, x, k: model.apply({"params": p}, x, k, method="train"))
    trained = run(params, images, jax.random.key(0))
    logits, tokens, tokens_after = quick_jit(lambda p, x: model.apply({"params": p}, x))(params, images)
    np.testing.assert_allclose(trained.logits, logits, rtol=1e-4, atol=1e-4)
    kept = np.asarray(trained.is_kept).sum(1)
    assert len(set(kept)) > 1  # every image has a number of its own
    alone = np.asarray(tokens.token_of_patch) >= 0
    if not package:
        np.testing.assert_array_equal(alone, np.asarray(trained.is_kept) > 0.5)
        np.testing.assert_array_equal(tokens.count, 1 + kept)
    # What an image costs follows its own tokens.
    total = model.predictor.macs(model.spec, tokens_after).total
    assert len(set(np.asarray(total).tolist())) > 1
    same = tuple(jnp.full(6, count) for count in model.predictor.tokens_after(model.spec))
    exact = model.predictor.macs(model.spec).total
    np.testing.assert_allclose(model.predictor.macs(model.spec, same).total, exact, rtol=1e-6)


def test_evaluation_drops_tokens_and_draws_nothing(images):
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
    all_kept = PredictorViT(model.spec, PredictorConfig(True, SITES, (1.0, 1.0), 2))
    wanted, _ = quick_jit(lambda p, x: model.apply({"params": p}, x, method="features"))(params, images)
    found, *_ = quick_jit(lambda p, x: all_kept.apply({"params": p}, x))(params, images)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


def test_decisions_have_a_gradient(images):
    model, params = network(True, images)

    def loss(params):
        out = model.apply({"params": params}, images, jax.random.key(1), method="train")
        return jnp.sum(jnp.sin(out.logits))

    found = quick_jit(jax.grad(loss))(params)
    for site in SITES:
        assert float(jnp.abs(found[f"selector_{site}"]["decide_kernel"]).max()) > 0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))


def test_costs():
    """DynamicViT at 0.7 on DeiT-S and -B: 2.92 and 11.2 GMACs with selectors of 5/8 N C^2 + N C / 2, as its authors count;
    ours has one more matrix, C x C, that they leave out."""
    for size, published in (("deit_small", 2.92), ("deit_base", 11.2)):
        spec = ModelSpec(SPACES[size], image_size=224, patch_size=16, num_classes=1000)
        own = PredictorConfig(False, (3, 6, 9), (0.7, 0.49, 0.343))
        found, width, tokens_after = own.macs(spec), spec.space.super_width, own.tokens_after(spec)
        counts = [tokens_after[site - 1] - 1 for site in own.layers]
        ours = sum(predictor_macs(count, width, 1) for count in counts)
        theirs = sum(5 * count * width**2 // 8 + count * width // 2 for count in counts)
        assert ours - theirs == sum(count * width**2 for count in counts)
        last = 8 * width**2 * (tokens_after[-1] - 1)
        total = found.total - found.residual_maps + last + theirs - ours
        assert total / 1e9 == pytest.approx(published, abs=0.05 if size == "deit_small" else 0.25)


def test_a_share_is_met():
    spec = ModelSpec(SPACES["deit_small"], image_size=224, patch_size=16, num_classes=1000)
    from prance_jax.spec.macs import macs

    for share in (0.5, 0.7):
        own = predictor_at_share(spec, True, share, heads=6)
        assert own.macs(spec).total / macs(spec, spec.largest).total == pytest.approx(share, abs=0.01)


def test_selectors_that_make_no_sense():
    with pytest.raises(UserError, match="a share of keep_rates"):
        PredictorConfig(True, (3, 6), (0.5,))
    with pytest.raises(UserError, match="never rise"):
        PredictorConfig(True, (3, 6), (0.5, 0.6))


def test_hidden_keys_have_a_bounded_gradient():
    """One key, hidden, whose logit leads by 60: what is attended to is as if it were not there, and the gradient of its
    policy is what showing it can change at most, not e^60."""
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.normal(size=(1, 1, 4, 2)), jnp.float32) for _ in range(3))
    q = q.at[..., 0].set(1.0)
    k = k.at[0, 0, 3].set(jnp.array([60 * 2**0.5, 0.0]))
    policy = jnp.array([[1.0, 1.0, 1.0, 0.0]])
    found = dot_product_attention(q, k, v, None, policy)[0, 0, :3]
    np.testing.assert_allclose(
        found, dot_product_attention(q[:, :, :3], k[:, :, :3], v[:, :, :3], None)[0, 0], rtol=1e-5
    )
    shown = jax.jacobian(lambda policy: dot_product_attention(q, k, v, None, policy)[0, 0, :3])(policy)[
        :, :, 0, 3
    ]
    most = jnp.abs(v[0, 0, 3] - found)
    assert bool(jnp.all(jnp.abs(shown) <= most + 1e-5)) and float(jnp.abs(shown).max()) > 0.1 * float(
        most.max()
    )
    apart = jax.grad(lambda q: jnp.sum(jnp.sin(dot_product_attention(q, k, v, None, policy)[0, 0, :3])))(q)
    alone = jax.grad(
        lambda q: jnp.sum(jnp.sin(dot_product_attention(q, k[:, :, :3], v[:, :, :3], None)[0, 0]))
    )(q[:, :, :3])
    np.testing.assert_allclose(apart[:, :, :3], alone, rtol=1e-4, atol=1e-6)
