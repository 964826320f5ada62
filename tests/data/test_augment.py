"""Augmentation agrees with Pillow, with boxes worked out by hand and with its definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from prance_jax.core import losses
from prance_jax.core.errors import UserError
from prance_jax.data import crops, rand_augment
from prance_jax.data.augment import AugmentConfig, augment, erase, mix, padded_crop, resized_crop

PIXELS = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
# Smooth enough that equalize and autocontrast have something to do.
PIXELS[4:12] = PIXELS[4:12] // 3 + 40
UNIT = jnp.asarray(PIXELS, jnp.float32) / 255


def pillow(change):
    return np.asarray(change(Image.fromarray(PIXELS)), np.float32)


def solarize_add(image):
    table = [min(255, value + 99) if value < 128 else value for value in range(256)]
    return image.point(table * 3)


@pytest.mark.parametrize(
    "name, ours, theirs",
    [
        ("autocontrast", lambda x: rand_augment.autocontrast(x), ImageOps.autocontrast),
        ("equalize", lambda x: rand_augment.equalize(x), ImageOps.equalize),
        ("invert", lambda x: rand_augment.invert(x), ImageOps.invert),
        ("posterize", lambda x: rand_augment.posterize(x, 3.0), lambda x: ImageOps.posterize(x, 3)),
        ("solarize", lambda x: rand_augment.solarize(x, 100.0), lambda x: ImageOps.solarize(x, 100)),
        ("solarize_add", lambda x: rand_augment.solarize_add(x, 99.0), solarize_add),
        ("color", lambda x: rand_augment.color(x, 1.7), lambda x: ImageEnhance.Color(x).enhance(1.7)),
        (
            "contrast",
            lambda x: rand_augment.contrast(x, 0.4),
            lambda x: ImageEnhance.Contrast(x).enhance(0.4),
        ),
        (
            "brightness",
            lambda x: rand_augment.brightness(x, 1.3),
            lambda x: ImageEnhance.Brightness(x).enhance(1.3),
        ),
        (
            "sharpness",
            lambda x: rand_augment.sharpness(x, 0.3),
            lambda x: ImageEnhance.Sharpness(x).enhance(0.3),
        ),
    ],
)
def test_colour_operations_agree_with_pillow(name, ours, theirs):
    """Up to two levels differ, because Pillow rounds in between."""
    np.testing.assert_allclose(np.asarray(ours(UNIT)) * 255, pillow(theirs), atol=2.01, err_msg=name)


def inner(image, border=5):
    return image[border:-border, border:-border]


def test_geometric_operations_agree_with_pillow():
    """The border is left out: Pillow fills it in another way."""
    rotated = np.asarray(rand_augment.affine(UNIT, *rand_augment.rotation(20.0))) * 255
    expected = pillow(lambda x: x.rotate(20, Image.Resampling.BILINEAR))
    np.testing.assert_allclose(inner(rotated), inner(expected), atol=2)
    sheared = np.asarray(rand_augment.affine(UNIT, *rand_augment.shear(0.0, 0.25))) * 255
    # Pillow shears about the corner of the first pixel, we about the middle of the image.
    matrix = (1, 0.25, -0.25 * 8, 0, 1, 0)
    expected = pillow(
        lambda x: x.transform(x.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)
    )
    np.testing.assert_allclose(inner(sheared), inner(expected), atol=2)
    translated = np.asarray(rand_augment.affine(UNIT, *rand_augment.translation(0.0, 3 / 16))) * 255
    np.testing.assert_allclose(translated[:, :-3], PIXELS[:, 3:], atol=1e-3)
    np.testing.assert_allclose(
        translated[:, -2:], np.broadcast_to(rand_augment.FILL * 255, (16, 2, 3)), atol=1e-3
    )


def test_rand_augment_changes_about_half_and_stays_in_range():
    keys = jax.random.split(jax.random.key(0), 400)
    out = jax.jit(jax.vmap(lambda key: rand_augment.rand_augment(UNIT, key, 1, 9.0)))(keys)
    assert float(out.min()) >= 0 and float(out.max()) <= 1
    changed = np.asarray(jnp.abs(out - UNIT).max((1, 2, 3)) > 1e-6)
    # Standard deviation 0.025; autocontrast does not change an image that has the full range (1 in 15).
    assert abs(changed.mean() - 0.5 * 14 / 15) < 0.1


def test_boxes_have_the_areas_and_ratios_of_their_definition():
    uniform = np.random.default_rng(0).random((3000, crops.TRIES, 4))
    boxes = np.array([crops.random_resized(numbers, 90, 120, 0.2) for numbers in uniform])
    top, left, height, width = boxes.T
    assert (
        (top >= 0).all() and (left >= 0).all() and (top + height <= 90).all() and (left + width <= 120).all()
    )
    share, ratio = height * width / (90 * 120), width / height
    assert share.min() > 0.19 and share.max() <= 1 and ratio.min() > 0.74 and ratio.max() < 1.36
    on_device = crops.random_resized(jnp.asarray(uniform[7], jnp.float32), 90, 120, 0.2)
    np.testing.assert_allclose(on_device, boxes[7])


def test_a_box_that_never_fits_becomes_the_centre():
    # Whole area at ratio 4 / 3 of a strip 10 x 100: the largest box within the ratios, in the middle.
    uniform = np.tile([0.999, 0.999, 0.5, 0.5], (crops.TRIES, 1))
    assert crops.random_resized(uniform, 10, 100) == (0, 43, 10, 13)
    assert crops.evaluation(256, 320, 0.875) == (16.0, 48.0, 224.0, 224.0)


def test_crops_show_parts_of_the_image():
    windows = np.lib.stride_tricks.sliding_window_view(
        np.pad(PIXELS, ((2, 2), (2, 2), (0, 0))), (16, 16), (0, 1)
    )
    windows = windows.reshape(25, 3, 16, 16).transpose(0, 2, 3, 1)
    matches = set()
    for seed in range(60):
        out = np.asarray(padded_crop(UNIT, jax.random.key(seed), 2)) * 255
        match = np.flatnonzero(np.isclose(windows, out, atol=1e-3).all((1, 2, 3)))
        assert len(match) == 1
        matches.add(int(match[0]))
    assert len(matches) > 18  # of 25 positions, in 60 draws
    ramp = jnp.broadcast_to(jnp.linspace(0, 1, 64)[:, None, None], (64, 64, 1))
    out = jax.vmap(lambda key: resized_crop(ramp, key, 0.25))(jax.random.split(jax.random.key(0), 50))[..., 0]
    # A stretched part of a ramp is a ramp with a smaller slope, down to about one half.
    slope = np.asarray(out[:, 40, 32] - out[:, 24, 32]) * 63 / 16
    assert (slope > 0.4).all() and (slope < 1.01).all() and slope.std() > 0.1


def test_erasing_changes_one_box_with_the_area_of_the_recipe():
    image = jnp.full((40, 40, 3), 7.0)
    out = jax.vmap(lambda key: erase(image, key, 0.5))(jax.random.split(jax.random.key(0), 400))
    is_erased = np.asarray((out != 7.0).any(-1))
    share = is_erased.mean((1, 2))
    assert 0.4 < (share > 0).mean() < 0.6
    assert 0.015 < share[share > 0].min() and share.max() < 0.35
    noise = np.asarray(out)[is_erased]
    assert abs(noise.mean()) < 0.02 and abs(noise.std() - 1) < 0.02


@pytest.mark.parametrize("mixup, cutmix", [(0.8, 0.0), (0.0, 1.0), (0.8, 1.0)])
def test_labels_are_mixed_as_the_pixels_are(mixup, cutmix):
    """Image i has the constant value i, so the mean pixel equals the mean label."""
    number = jnp.arange(6)
    images = jnp.broadcast_to(number[:, None, None, None].astype(jnp.float32), (6, 16, 16, 1))
    for seed in range(8):
        mixed, shares = mix(images, number, jax.random.key(seed), mixup, cutmix, 6)
        np.testing.assert_allclose(shares.sum(1), 1, rtol=1e-6)
        np.testing.assert_allclose(mixed.mean((1, 2, 3)), shares @ number, rtol=1e-4)
        if not mixup:
            assert set(np.unique(mixed)) <= set(range(6))


def test_losses_accept_mixed_labels():
    logits = jax.random.normal(jax.random.key(0), (5, 4))
    labels = jnp.array([0, 3, 1, 1, 2])
    hard = losses.cross_entropy(logits, labels, 0.1)
    np.testing.assert_allclose(losses.cross_entropy(logits, jax.nn.one_hot(labels, 4), 0.1), hard, rtol=1e-6)
    assert losses.accuracy(logits, jax.nn.one_hot(labels, 4)) == losses.accuracy(logits, labels)


def test_the_whole_recipe_depends_on_its_key_alone():
    config = AugmentConfig(
        crop="resized", flip=True, rand_augment=2, erase=0.25, mixup=0.8, cutmix=1.0, min_area=0.3
    )
    run = jax.jit(lambda key: augment(config, images, labels, key, lambda x: (x - 0.5) / 0.25, 4))
    images, labels = jnp.stack([UNIT] * 4), jnp.arange(4)
    (first, soft), (again, _), (other, _) = (
        run(jax.random.key(1)),
        run(jax.random.key(1)),
        run(jax.random.key(2)),
    )
    np.testing.assert_array_equal(first, again)
    assert first.shape == images.shape and soft.shape == (4, 4) and float(jnp.abs(first - other).max()) > 0.5
    _, plain_labels = augment(config.plain, images, labels, jax.random.key(1), lambda x: x, 4)
    np.testing.assert_array_equal(plain_labels, labels)
    off, _ = augment(AugmentConfig(), images, labels, jax.random.key(1), lambda x: x, 4)
    np.testing.assert_array_equal(off, images)


def test_flips_are_left_right_and_half():
    config = AugmentConfig(flip=True)
    images = jnp.broadcast_to(UNIT, (300, 16, 16, 3))
    out, _ = augment(config, images, jnp.zeros(300, int), jax.random.key(0), lambda x: x, 2)
    same, flipped = (np.asarray((out == image).all((1, 2, 3))) for image in (UNIT, UNIT[:, ::-1]))
    assert (same ^ flipped).all() and abs(same.mean() - 0.5) < 0.09


@pytest.mark.parametrize(
    "change, words",
    [
        (dict(min_area=0.0), "min_area"),
        (dict(erase=1.5), "erase"),
        (dict(mixup=-1.0), "mixup"),
        (dict(repeats=0), "repeats = 0 is out of range; it should be from 1"),
        (dict(rand_augment=2, jitter=0.4), "leave out jitter"),
    ],
)
def test_invalid_recipes_are_refused(change, words):
    with pytest.raises(UserError, match=words):
        AugmentConfig(**change)


def test_colour_operations_need_three_channels():
    grey = jnp.zeros((2, 8, 8, 1))
    with pytest.raises(UserError, match="need 3 channels; these images have 1"):
        augment(AugmentConfig(jitter=0.3), grey, jnp.zeros(2, int), jax.random.key(0), lambda x: x, 2)
