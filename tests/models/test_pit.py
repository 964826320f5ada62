"""PiT: its published sizes, grids through pooling, and one network in training and evaluation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import quick_jit

from prance_jax.errors import UserError
from prance_jax.models import pit
from prance_jax.models.pit import PiT, PiTSpec, pit_macs

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
    wave = lambda leaf: leaf + 0.1 * jnp.sin(jnp.arange(leaf.size, dtype=jnp.float32)).reshape(leaf.shape)
    return model, jax.tree.map(wave, params)


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
    """With selectors that keep all, in an odd grid (5 x 5, then 3 x 3)."""
    model, params = network(pictures, sites=(1, 1), kept=(1.0, 1.0))
    assert model.spec.grids == (5, 3)
    plain = PiT(PiTSpec(**SMALL))
    without = {name: leaf for name, leaf in params.items() if not name.startswith("selector")}
    run = lambda model, params: quick_jit(lambda p, x: model.apply({"params": p}, x))(params, pictures)
    np.testing.assert_allclose(run(model, params), run(plain, without), rtol=1e-5, atol=1e-5)


def test_training_is_evaluation_with_the_same_decisions(pictures, monkeypatch):
    """The most likely tokens in both: masked and removed, through the pooling and the carried package. (Of several heads
    the two averages, in logarithms and plain, may order tokens differently.)"""
    model, params = network(pictures, sites=(1, 0), kept=(0.4, 0.5), heads=(1, 1))

    def best(chances, key):
        left = model.spec.left(0 if chances.shape[1] == 25 else 1)
        rank = jnp.argsort(jnp.argsort(-jnp.exp(chances[..., 0]), axis=1), axis=1)
        return (rank < left).astype(jnp.float32)

    monkeypatch.setattr(pit, "draw", best)
    trained = quick_jit(lambda p, x, k: model.apply({"params": p}, x, k, method="train"))(
        params, pictures, jax.random.key(0)
    )
    np.testing.assert_allclose(trained.kept, np.broadcast_to([10 / 25, 4 / 9], (4, 2)), rtol=1e-5)
    logits = quick_jit(lambda p, x: model.apply({"params": p}, x))(params, pictures)
    np.testing.assert_allclose(trained.logits, logits, rtol=1e-4, atol=1e-4)
    order = np.array([2, 0, 3, 1])
    again = quick_jit(lambda p, x: model.apply({"params": p}, x))(params, pictures[order])
    np.testing.assert_allclose(again, logits[order], rtol=1e-5, atol=1e-5)


def test_costs_fall_with_what_is_kept():
    plain, reduced = PiTSpec(224, 1000), PiTSpec(224, 1000, sites=(1, 3, 2), kept=(0.6, 0.4, 0.3))
    assert reduced.left(0) == round(0.6 * 27**2)
    assert 0.4 < pit_macs(reduced) / pit_macs(plain) < 0.75


def test_specs_that_make_no_sense():
    for changes, words in (
        ({"dims": (8,)}, "must be as many"),
        ({"sites": (1,), "kept": (0.5,)}, "one entry for each stage"),
        ({"sites": (2, 0), "kept": (0.5, 0.5)}, "blocks of stages"),
        ({"sites": (1, 0), "kept": (0.5, 0.0)}, "above 0"),
    ):
        with pytest.raises(UserError, match=words):
            PiTSpec(**{**SMALL, **changes})
