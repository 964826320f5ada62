"""Long-tailed classes drawn by an exponent; grey images from colour files."""

import dataclasses

import jax
import numpy as np
import pytest
from PIL import Image

from prance_jax.core.errors import UserError
from prance_jax.data.arrays import from_arrays
from prance_jax.data.augment import AugmentConfig
from prance_jax.data.images.folder import FolderConfig, load_folder_source, open_split
from prance_jax.data.images.image_source import image_source
from prance_jax.data.images.records import ImagesConfig
from prance_jax.data.source import ClassBalance

COUNTS = {"a": 36, "b": 4, "c": 1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Red gives the class of an image, green its number in the class."""
    root = tmp_path_factory.mktemp("long_tail")
    for split in ("train", "val"):
        for label, (name, count) in enumerate(COUNTS.items()):
            (root / split / name).mkdir(parents=True)
            for number in range(count if split == "train" else 1):
                Image.new("RGB", (8, 8), (80 * label, 5 * number, 7)).save(
                    root / split / name / f"{number}.png"
                )
    return FolderConfig(str(root), validation="val", test="val")


def config(**change):
    return ImagesConfig(**{**dict(size=8, crop=1.0, mean=(0.0,) * 3, std=(1.0,) * 3, threads=2), **change})


@pytest.mark.parametrize("exponent, expected", [(1, (0.9, 0.1)), (0, (0.5, 0.5)), (0.5, (0.75, 0.25))])
def test_probabilities_of_classes(exponent, expected):
    """9 : 1 images; their square roots are 3 : 1. A class without images is never drawn."""
    probabilities = ClassBalance((18, 0, 2), exponent).probabilities
    np.testing.assert_allclose(probabilities, (expected[0], 0, expected[1]))


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize("exponent, expected", [(0.0, (1 / 3, 1 / 3, 1 / 3)), (0.5, (6 / 9, 2 / 9, 1 / 9))])
def test_how_often_classes_are_drawn(folder, in_memory, exponent, expected):
    source = load_folder_source(folder, config(in_memory=in_memory, balance_exponent=exponent))
    if in_memory:
        images, labels = jax.jit(source.sample, static_argnums=2)(source.tables, jax.random.key(3), 4100)
    else:
        batches = source.batches(410)
        images, labels = (np.concatenate(part) for part in zip(*(next(batches) for _ in range(10))))
        images = images / 255
    red, green = (np.round(np.asarray(images)[:, 4, 4, channel] * 255).astype(int) for channel in (0, 1))
    np.testing.assert_array_equal(red, 80 * np.asarray(labels))
    drawn = np.bincount(labels, minlength=3)
    deviation = np.sqrt(4100 * np.array(expected) * (1 - np.array(expected)))
    assert (np.abs(drawn - 4100 * np.array(expected)) < 4 * deviation).all(), drawn
    # All images of a class are drawn, about equally often.
    numbers = np.bincount(green[labels == 0] // 5, minlength=36)
    assert numbers.min() > 0.4 * numbers.mean() and numbers.max() < 1.8 * numbers.mean()


def test_a_balanced_stream_continues_with_the_next_images(folder):
    source = load_folder_source(folder, config(in_memory=False, balance_exponent=0.3))
    whole, resumed = source.batches(30), source.batches(30, start=2)
    batches = [next(whole) for _ in range(4)]
    np.testing.assert_array_equal(next(resumed).images, batches[2].images)
    assert not np.array_equal(batches[0].labels, batches[2].labels)


def test_exponent_one_draws_as_without_it(folder):
    plain, one = (
        load_folder_source(folder, settings) for settings in (config(), config(balance_exponent=1.0))
    )
    draw = [source.sample(source.tables, jax.random.key(0), 16) for source in (plain, one)]
    np.testing.assert_array_equal(draw[0][0], draw[1][0])


def test_what_cannot_be_balanced(folder):
    with pytest.raises(UserError, match="balance_exponent = 1.5 is out of range; it should be from 0 to 1"):
        config(balance_exponent=1.5)
    images = np.zeros((4, 8, 8, 1), np.uint8)
    with pytest.raises(UserError, match="balance_exponent = -0.5 is out of range; it should be from 0 to 1"):
        from_arrays((images, np.zeros(4, int)), num_classes=1, balance_exponent=-0.5)
    train = dataclasses.replace(open_split(folder.path, "train"), labels=None)
    with pytest.raises(UserError, match="train: labels are known only after reading"):
        image_source(config(in_memory=False, balance_exponent=0.5), AugmentConfig(), {"train": train})


@pytest.mark.parametrize("in_memory", [True, False])
def test_grey_images_with_the_mean_of_colours(tmp_path, in_memory):
    """Files of the mean colour become 0, a grey file of value v becomes (v - mean) / std of grey."""
    for split in ("train", "test"):
        (tmp_path / split / "x").mkdir(parents=True)
        for number in range(2):
            Image.new("RGB", (8, 8), (51, 153, 102)).save(tmp_path / split / "x" / f"{number}.png")
        Image.new("L", (8, 8), 255).save(tmp_path / split / "x" / "white.png")
    settings = config(channels=1, in_memory=in_memory, mean=(0.2, 0.6, 0.4), std=(0.5, 0.5, 0.5))
    images = load_folder_source(FolderConfig(str(tmp_path)), settings).split("test").images[:]
    assert images.shape == (3, 8, 8, 1)
    # Luma of (51, 153, 102): 15.2 + 89.8 + 11.6 = 116.7 of 255.
    np.testing.assert_allclose(images[:2], 0, atol=0.5 / 255 / 0.5)
    np.testing.assert_allclose(images[2], (255 - 116.7) / 255 / 0.5, atol=1e-3)
