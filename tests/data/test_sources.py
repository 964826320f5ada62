"""The embedded digits agree with an independent paste; arrays with bad input are refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prance_jax.core.errors import UserError
from prance_jax.data.arrays import from_arrays
from prance_jax.data.augment import AugmentConfig
from prance_jax.data.digits.digits import load_digits_source, split_digits
from prance_jax.data.digits.render import DigitsConfig, draw_digits, sample_placement

CONFIG = DigitsConfig(
    canvas=28,
    grid=4,
    min_scale=14.0,
    max_scale=17.0,
    min_crop=2,
    max_crop=3,
    clutter_ink=0.7,
    test_images=300,
)


@pytest.fixture(scope="module")
def source():
    return load_digits_source(CONFIG)


def test_splits_share_no_digit_and_hold_every_class():
    from sklearn.datasets import load_digits

    labels, parts = load_digits().target, split_digits(CONFIG)
    joined = np.concatenate(list(parts.values()))
    assert len(joined) == len(set(joined)) == 1797
    overall = np.bincount(labels) / 1797
    for part in parts.values():
        np.testing.assert_allclose(np.bincount(labels[part], minlength=10) / len(part), overall, atol=0.02)


def test_same_key_same_images(source):
    draw_batch = jax.jit(source.sample, static_argnums=2)
    first, again, other = (draw_batch(source.tables, jax.random.key(seed), 16) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first[0], again[0])
    assert float(jnp.abs(first[0] - other[0]).max()) > 0.5
    assert first[0].shape == (16, 28, 28, 1) and first[0].dtype == jnp.float32


def test_a_digit_without_clutter_is_a_bilinear_paste(source):
    """Without clutter every pixel is the glyph, read at the pixel's centre by bilinear interpolation."""
    config = DigitsConfig(canvas=28, grid=4, min_scale=14.0, max_scale=17.0, max_clutter=0)
    key = jax.random.key(4)
    drawing = draw_digits(config, source.glyphs["test"], key, 3)
    placement, _ = sample_placement(config, jax.random.split(key, 3)[2], 3)
    for image in range(3):
        glyph = np.pad(source.glyphs["test"].pixels[drawing.glyph[image]], 1) * float(placement.ink[image, 0])
        start, size = np.asarray(placement.start)[image, 0], np.asarray(placement.size)[image, 0]
        np.testing.assert_allclose(start % 4, 0, atol=1e-5)
        for y in range(28):
            for x in range(28):
                v, u = ((p + 0.5 - s) * 8 / length - 0.5 for p, s, length in zip((y, x), start, size))
                v0, u0 = int(np.floor(v)), int(np.floor(u))
                expected = 0.0
                for row, weight_y in ((v0, 1 - (v - v0)), (v0 + 1, v - v0)):
                    for column, weight_x in ((u0, 1 - (u - u0)), (u0 + 1, u - u0)):
                        if -1 <= row <= 8 and -1 <= column <= 8:
                            expected += weight_y * weight_x * glyph[row + 1, column + 1]
                assert abs(float(drawing.images[image, y, x, 0]) - expected) < 2e-5
        assert drawing.labels[image] == source.glyphs["test"].labels[drawing.glyph[image]]


def test_clutter_is_uniform_on_zero_to_eight(source):
    drawing = jax.jit(lambda key: draw_digits(CONFIG, source.tables, key, 4000))(jax.random.key(0))
    np.testing.assert_allclose(np.bincount(drawing.clutter, minlength=9) / 4000, 1 / 9, atol=0.02)
    ink = np.asarray(drawing.images).sum((1, 2, 3))
    assert ink[np.asarray(drawing.clutter) == 8].mean() > ink[np.asarray(drawing.clutter) == 0].mean() + 5


def test_fixed_sets(source):
    test = source.split("test")
    assert test.images.shape == (300, 28, 28, 1) and set(test.extra) == {"clutter", "glyph"}
    np.testing.assert_array_equal(test.images, load_digits_source(CONFIG).split("test").images)
    unit = source.to_unit(test.images)
    assert unit.min() > -1e-5 and unit.max() < 1 + 1e-5
    np.testing.assert_array_equal(test.labels, source.glyphs["test"].labels[test.extra["glyph"]])
    with pytest.raises(UserError, match="no fixed set 'train'"):
        source.split("train")


@pytest.mark.parametrize(
    "change, words",
    [
        (dict(max_scale=27.0), "does not fit on a canvas of 28"),
        (dict(min_scale=20.0), "min_scale <= max_scale"),
        (dict(min_crop=0), "min_crop"),
        (dict(max_clutter=-1), "max_clutter = -1 is out of range; it should be from 0"),
        (dict(clutter_ink=0.0), "clutter_ink = 0.0 is out of range; it should be above 0 and up to 1"),
        (dict(grid=-4), "grid = -4 is out of range; it should be from 0"),
        (dict(test_images=0), "test_images = 0 is out of range; it should be from 1"),
    ],
)
def test_invalid_digit_configs_are_refused(change, words):
    with pytest.raises(UserError, match=words):
        DigitsConfig(**{**dict(canvas=28, min_scale=14.0, max_scale=17.0), **change})


IMAGES, LABELS = np.random.default_rng(0).normal(size=(12, 8, 8, 3)), np.arange(12) % 4


def test_arrays_return_the_given_images_and_labels():
    source = from_arrays(
        (IMAGES, LABELS),
        num_classes=4,
        mean=1.0,
        std=2.0,
        value_range=(-np.inf, np.inf),
        test=(IMAGES[:5], LABELS[:5]),
    )
    images, labels = jax.jit(source.sample, static_argnums=2)(source.tables, jax.random.key(0), 64)
    for image, label in zip(np.asarray(images), np.asarray(labels)):
        match = np.flatnonzero(np.isclose((IMAGES - 1) / 2, image, atol=1e-6).all((1, 2, 3)))
        assert len(match) == 1 and LABELS[match[0]] == label
    np.testing.assert_allclose(source.to_unit(source.split("test").images), IMAGES[:5], rtol=1e-5, atol=1e-6)
    with pytest.raises(UserError, match="no set 'validation'; given were test"):
        source.split("validation")


@pytest.mark.parametrize(
    "images, labels, words",
    [
        (IMAGES[:0], LABELS[:0], "train set is empty"),
        (IMAGES[0], LABELS, "shape \\(8, 8, 3\\); expected"),
        (IMAGES, LABELS[:3], "expected 12 integers"),
        (IMAGES, LABELS + 0.5, "expected 12 integers"),
        (IMAGES, LABELS + 1, "label 4 of image 3 is outside 0 .. 3"),
        (
            np.where(np.arange(12)[:, None, None, None] == 7, np.nan, IMAGES),
            LABELS,
            "train image 7 has pixels that are not finite",
        ),
    ],
)
def test_invalid_arrays_are_refused(images, labels, words):
    with pytest.raises(UserError, match=words):
        from_arrays((images, labels), num_classes=4)


PIXELS = np.random.default_rng(1).integers(0, 256, (4, 6, 6, 3))


@pytest.mark.parametrize(
    "images, value_range",
    [
        (PIXELS.astype(np.uint8), None),
        (PIXELS.astype(np.uint8), (0, 255)),
        (PIXELS / 255, None),
        ((PIXELS / 255).astype(np.float32), None),
        (PIXELS, (0, 255)),
        (PIXELS.astype(np.uint16) * 257, (0, 65535)),
        (PIXELS * 10.0 - 500, (-500, 2050)),
    ],
)
def test_pixels_of_every_type_mean_the_same(images, value_range):
    """The same pictures in seven types: 0 is black and 1 is white, before (x - 0.5) / 0.25."""
    labels = np.zeros(4, int)
    source = from_arrays(
        (images, labels), num_classes=1, mean=0.5, std=0.25, value_range=value_range, test=(images, labels)
    )
    np.testing.assert_allclose(source.split("test").images, (PIXELS / 255 - 0.5) / 0.25, atol=1e-5)
    unit = source.normalisation.to_float(source.tables.images)
    np.testing.assert_allclose(unit, PIXELS / 255, atol=1e-6)


def test_masks_are_zero_and_one():
    masks = PIXELS > 99
    source = from_arrays((masks, np.zeros(4, int)), num_classes=1)
    np.testing.assert_array_equal(source.tables.images, masks.astype(np.float32))


@pytest.mark.parametrize(
    "images, options, words",
    [
        (PIXELS, {}, "int64, whose range is unknown; give value_range"),
        (PIXELS.astype(np.int32), {}, "int32, whose range"),
        (PIXELS.astype(np.int16), {}, "int16, whose range"),
        (PIXELS.astype(np.uint16), {}, r"uint16, whose range .* \(0, 255\) or \(0, 65535\)"),
        (
            PIXELS.astype(np.float32),
            {},
            "train image 0 has pixels from .* outside of 0 to 1; clip them, or give",
        ),
        (PIXELS / 127.5 - 1, {}, r"outside of 0 to 1.*\(-inf, inf\) if they are normalised"),
        (PIXELS, dict(value_range=(0, 200)), "outside of 0 to 200"),
        (PIXELS.astype(object), dict(value_range=(0, 255)), "type object; expected integers or floats"),
        (PIXELS / 255, dict(value_range=(1, 0)), r"value_range is \(1, 0\); expected"),
        (PIXELS / 255, dict(value_range=(0, np.inf)), "value_range is"),
        (
            PIXELS / 255,
            dict(value_range=(-np.inf, np.inf), augment=AugmentConfig(jitter=0.1)),
            r"RandAugment and jitter change images in \[0, 1\]",
        ),
    ],
)
def test_pixels_of_an_unknown_range_are_refused(images, options, words):
    with pytest.raises(UserError, match=words):
        from_arrays((images, np.zeros(4, int)), num_classes=1, **options)
