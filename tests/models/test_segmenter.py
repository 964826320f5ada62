"""A class for every pixel from reduced tokens, and the embedded task that it is measured on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import SHORT, make_spec, quick_jit
from test_complexity import product_flops

from prance_jax.data.digit_masks import DigitMasks
from prance_jax.data.digits import DigitsConfig, load_digits_source
from prance_jax.models.reduced import METHODS, Reduction
from prance_jax.models.segmenter import Segmenter, segmenter_macs
from prance_jax.tokens.schedules import KeepRate, Removed
from prance_jax.training.segment import confusion_matrix, from_confusion


@pytest.fixture(scope="module")
def network(images):
    model = Segmenter(make_spec(space=SHORT), 3)
    params = quick_jit(model.init)(jax.random.key(0), images[:1])["params"]
    return model, jax.tree.map(
        lambda leaf: leaf + 0.1 * jnp.sin(jnp.arange(leaf.size)).reshape(leaf.shape), params
    )


def run(network, images, *arguments):
    model, params = network
    return quick_jit(lambda p, x: model.apply({"params": p}, x, *arguments))(params, images)


def test_pixels_come_from_their_own_patch(network, images):
    """Without attention between patches (one image, a change in one corner) the linear map stays local: a bias of one
    pixel of the patch moves that pixel of every patch alone."""
    model, params = network
    logits = run(network, images)
    assert logits.shape == (6, 16, 16, 3)
    size, pixel = 4, 4 * 1 + 2  # row 1, column 2 of each patch, class 0
    bias = params["pixels"]["bias"].at[3 * pixel].add(1.0)
    moved = run((model, {**params, "pixels": {**params["pixels"], "bias": bias}}), images) - logits
    wanted = np.zeros((16, 16, 3))
    wanted[1::size, 2::size, 0] = 1
    np.testing.assert_allclose(moved, np.broadcast_to(wanted, moved.shape), atol=1e-4)


@pytest.mark.parametrize(
    "name, fill", [("tome", "nearest"), ("cait", "nearest"), ("prune", None), ("prune", "zero")]
)
def test_reduced_tokens_are_back_on_the_grid(network, images, name, fill):
    schedule = Removed((4, 0, 3)) if name == "tome" else KeepRate(0.5, (0, 2), fused=False)
    reduction = Reduction(METHODS[name], schedule)
    found = run(network, images, reduction, fill)
    assert found.shape == (6, 16, 16, 3) and np.isfinite(found).all()
    order = np.array([3, 0, 5, 1, 4, 2])
    np.testing.assert_allclose(
        run(network, images[order], reduction, fill), found[order], rtol=1e-4, atol=1e-4
    )
    nothing = Reduction(METHODS[name], Removed(()))
    np.testing.assert_allclose(
        run(network, images, nothing, fill), run(network, images), rtol=1e-5, atol=1e-5
    )


def test_costs_are_what_runs(network):
    model, params = network
    image = jax.ShapeDtypeStruct((1, 16, 16, 3), jnp.float32)
    spec, reduction = model.spec, Reduction(METHODS["prune"], KeepRate(0.5, (0, 2), fused=False))
    for own in (None, reduction):
        program = lambda p, x: model.apply({"params": p}, x, own)
        found = product_flops(jax.make_jaxpr(program)(params, image).jaxpr)
        counts = [spec.tokens] * 4 if own is None else [spec.tokens, *own.left(spec)[:-1]]
        rows = spec.space.attention_width * sum(counts) + spec.num_classes * spec.space.widest
        assert found == 2 * (segmenter_macs(spec, 3, own).total + rows)


def test_masks_belong_to_their_images():
    source = load_digits_source(DigitsConfig(test_images=60, validation_images=40))
    masks = DigitMasks(source)
    scenes, plain = masks.split("test", 50), source.split("test")
    np.testing.assert_array_equal(scenes.images, plain.images[:50])
    unit = source.to_unit(scenes.images)[..., 0]
    for image, mask, label in zip(unit, scenes.masks, plain.labels):
        assert set(np.unique(mask)) == {0, 1 + label}
        assert (
            image[mask > 0].min() > 0.25 and 10 < (mask > 0).sum() < 200
        )  # the digit has ink wherever its mask is
    drawn = masks.sample(source.tables, jax.random.key(0), 8)
    again, _ = source.sample(source.tables, jax.random.key(0), 8)
    np.testing.assert_array_equal(drawn.images, again)


def test_miou_by_hand():
    truth, found = np.array([[0, 0, 1], [1, 2, 2]]), np.array([[0, 1, 1], [1, 2, 0]])
    result = from_confusion(confusion_matrix(truth, found, 4))
    np.testing.assert_allclose(result.each, [1 / 3, 2 / 3, 1 / 2, np.nan])
    assert result.miou == pytest.approx(0.5) and result.accuracy == pytest.approx(4 / 6)
