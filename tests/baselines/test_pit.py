"""PiT: published sizes, the grids after pooling, and training that equals evaluation."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import quick_jit
from spec.test_macs import product_flops

from prance_jax.baselines import token_predictor
from prance_jax.baselines.depthwise import DepthwisePool
from prance_jax.baselines.pit import PiT
from prance_jax.baselines.pit_spec import PiTSpec, pit_at_share, pit_macs
from prance_jax.core.errors import UserError

SMALL = {
    "image_size": 20,
    "num_classes": 5,
    "patch_size": 4,
    "stride": 4,
    "dims": (8, 16),
    "heads": (2, 2),
    "depths": (2, 2),
}


def network(images, **changes):
    model = PiT(PiTSpec(**{**SMALL, **changes}))
    params = quick_jit(model.init)(jax.random.key(0), images)["params"]
    add_wave = lambda leaf: leaf + 0.1 * jnp.sin(jnp.arange(leaf.size, dtype=jnp.float32)).reshape(leaf.shape)
    return model, jax.tree.map(add_wave, params)


@pytest.fixture(scope="module")
def pictures():
    return jax.random.normal(jax.random.key(1), (4, 20, 20, 3))


@pytest.mark.parametrize(
    "dims, heads, depths, gmacs, millions",
    [
        ((64, 128, 256), (2, 4, 8), (2, 6, 4), 0.7, 4.9),
        ((96, 192, 384), (2, 4, 8), (2, 6, 4), 1.4, 10.6),
        ((144, 288, 576), (3, 6, 12), (2, 6, 4), 2.9, 23.5),
    ],
)
def test_published_sizes(dims, heads, depths, gmacs, millions):
    """PiT-Ti, -XS and -S (table 2 of the paper)."""
    spec = PiTSpec(224, 1000, dims=dims, heads=heads, depths=depths)
    assert spec.grids == (27, 14, 7)
    assert pit_macs(spec) / 1e9 == pytest.approx(gmacs, abs=0.06)
    image = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    shapes = jax.eval_shape(PiT(spec).init, jax.random.key(0), image)["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) / 1e6 == pytest.approx(millions, abs=0.1)


def test_everything_kept_is_the_plain_network(pictures):
    """With token predictors that keep all patches, on odd grids (5 x 5, then 3 x 3)."""
    model, params = network(pictures, predictor_blocks=(1, 1), keep_rates=(1.0, 1.0))
    assert model.spec.grids == (5, 3)
    plain = PiT(PiTSpec(**SMALL))
    plain_params = {name: leaf for name, leaf in params.items() if not name.startswith("selector")}
    run = lambda model, params: quick_jit(lambda p, x: model.apply({"params": p}, x))(params, pictures)
    np.testing.assert_allclose(run(model, params), run(plain, plain_params), rtol=1e-5, atol=1e-5)


def test_training_is_evaluation_with_the_same_decisions(pictures, monkeypatch):
    """Both keep the most likely tokens, across the pooling and with the package of the stage before.

    One head: of several heads, the averages of logarithms and of probabilities may rank differently.
    """
    model, params = network(pictures, predictor_blocks=(1, 0), keep_rates=(0.4, 0.5), heads=(1, 1))

    def keep_best(log_probs, key):
        num_keep = model.spec.patches_after(0 if log_probs.shape[1] == 25 else 1)
        rank = jnp.argsort(jnp.argsort(-jnp.exp(log_probs[..., 0]), axis=1), axis=1)
        return (rank < num_keep).astype(jnp.float32)

    monkeypatch.setattr(token_predictor, "gumbel_keep_mask", keep_best)
    trained = quick_jit(lambda p, x, k: model.apply({"params": p}, x, k, method="train"))(
        params, pictures, jax.random.key(0)
    )
    np.testing.assert_allclose(trained.kept, np.broadcast_to([10 / 25, 4 / 9], (4, 2)), rtol=1e-5)
    logits = quick_jit(lambda p, x: model.apply({"params": p}, x))(params, pictures)
    np.testing.assert_allclose(trained.logits, logits, rtol=1e-4, atol=1e-4)
    order = np.array([2, 0, 3, 1])
    reordered = quick_jit(lambda p, x: model.apply({"params": p}, x))(params, pictures[order])
    np.testing.assert_allclose(reordered, logits[order], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("side, dim, dim_out", [(5, 4, 8), (4, 3, 9)])
def test_the_pooling_is_a_grouped_convolution(side, dim, dim_out):
    x = jax.random.normal(jax.random.key(2), (2, side, side, dim))
    convolution = nn.Conv(dim_out, (3, 3), (2, 2), padding=1, feature_group_count=dim)
    params = convolution.init(jax.random.key(3), x)
    params["params"]["bias"] = jnp.arange(dim_out, dtype=jnp.float32)
    pooled = DepthwisePool(dim_out).apply(params, x)
    np.testing.assert_allclose(pooled, convolution.apply(params, x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "predictor_blocks, keep_rates", [((), ()), ((1, 0), (0.4, 0.5)), ((1, 1), (1.0, 0.5))]
)
def test_macs_are_the_products_of_the_program(predictor_blocks, keep_rates):
    """Convolutions are added, which are no products here.

    The row of attention from CLS in each block is left out: only other token methods read it.
    """
    spec = PiTSpec(**SMALL, predictor_blocks=predictor_blocks, keep_rates=keep_rates)
    image = jax.ShapeDtypeStruct((1, 20, 20, 3), jnp.float32)
    params = jax.eval_shape(PiT(spec).init, jax.random.key(0), image)["params"]
    program = lambda p, x: PiT(spec).apply({"params": p}, x)
    products = product_flops(jax.make_jaxpr(program)(params, image).jaxpr) // 2
    # Tokens in the blocks of both stages, of 25 and 9 patches: CLS, those that stay, the package.
    counts = {(): (26, 26, 10, 10), (1, 0): (26, 12, 6, 6), (1, 1): (26, 26, 10, 6)}[predictor_blocks]
    rows = 8 * sum(counts[:2]) + 16 * sum(counts[2:])
    convolutions = 25 * 4 * 4 * 3 * 8 + 9 * 3 * 3 * 16
    assert pit_macs(spec) == products - rows + convolutions


@pytest.mark.parametrize(
    "predictor_blocks, powers", [(None, (1, 1, 1)), ((1, 1, 0), None), ((1, 0, 0), (1, 1.5, 2))]
)
def test_no_other_rate_is_nearer_to_a_share(predictor_blocks, powers):
    """Compared with a finer grid of rates, as shares of the plain network's MACs."""
    spec = PiTSpec(28, 10, patch_size=4, stride=3, dims=(32, 64, 128), heads=(2, 4, 8), depths=(2, 4, 2))
    macs_share = lambda candidate: pit_macs(candidate) / pit_macs(spec)
    chosen = pit_at_share(spec, 0.75, predictor_blocks, powers)
    patches, predictor_blocks = (81, 25, 9), predictor_blocks or (1, 2, 1)
    assert chosen.predictor_blocks == predictor_blocks
    num_keep = [count * rate for count, rate in zip(patches, chosen.keep_rates)]
    assert num_keep == [pytest.approx(chosen.patches_after(stage)) for stage in range(3)]
    shares = []
    for rate in np.arange(0.005, 1.0, 0.005):
        keep_rates = tuple(float(rate**power) for power in powers or (1, 2, 3))
        candidate = dataclasses.replace(spec, predictor_blocks=predictor_blocks, keep_rates=keep_rates)
        shares.append(macs_share(candidate))
    nearest = min(abs(share - 0.75) for share in shares)
    assert nearest <= abs(macs_share(chosen) - 0.75) < nearest + 0.01
    assert macs_share(pit_at_share(spec, 0.65, predictor_blocks, powers)) < macs_share(chosen)


def test_a_single_patch_makes_no_package():
    """A new package for one patch saves no token; an existing package takes it."""
    spec = PiTSpec(**SMALL, predictor_blocks=(1, 0), keep_rates=(24 / 25, 8 / 9))
    assert (spec.patches_after(0), spec.patches_after(1)) == (25, 9)
    spec = PiTSpec(**SMALL, predictor_blocks=(1, 0), keep_rates=(20 / 25, 8 / 9))
    assert (spec.patches_after(0), spec.patches_after(1)) == (20, 8)


def test_wrong_specs_are_refused():
    for changes, words in (
        ({"dims": (8,)}, "depths=.* need one entry for each stage"),
        ({"dims": (8, 12)}, "multiple of the one before"),
        ({"predictor_blocks": (1,), "keep_rates": (0.5,)}, "keep_rates=.* need one entry for each stage"),
        ({"predictor_blocks": (2, 0), "keep_rates": (0.5, 0.5)}, "block indices of their stages"),
        ({"predictor_blocks": (1, 0), "keep_rates": (0.5, 0.0)}, "above 0"),
    ):
        with pytest.raises(UserError, match=words):
            PiTSpec(**{**SMALL, **changes})
    with pytest.raises(UserError, match="one entry for each of 2 stages"):
        pit_at_share(PiTSpec(**SMALL), 0.6, powers=(1,))
