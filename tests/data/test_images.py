"""Image files on disk: every file format, and every way in which a data set can be broken."""

import dataclasses
import io
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from prance_jax.core.errors import UserError
from prance_jax.data.images.folder import FolderConfig, hold_out, load_folder_source, open_split
from prance_jax.data.images.records import ImagesConfig
from prance_jax.data.load import DataConfig, load_source


def encoded(image, kind="PNG", **options):
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def one_colour(value, side=8):
    """An image of one colour as PNG, which is lossless."""
    return encoded(Image.new("RGB", (side, side), value))


@pytest.fixture
def folder(tmp_path):
    """Two classes; the red of an image gives its class, the green its number."""
    for split, count in (("train", 10), ("test", 3)):
        for label, name in enumerate(("ant", "bee")):
            path = tmp_path / split / name
            path.mkdir(parents=True)
            for number in range(count):
                (path / f"{number}.png").write_bytes(one_colour((100 * label, 10 * number, 0)))
    return tmp_path


IMAGES = ImagesConfig(size=8, crop=1.0, mean=(0.0,) * 3, std=(1.0,) * 3)


def load(path, on_bad_image="error", **change):
    images = dataclasses.replace(IMAGES, on_bad_image=on_bad_image)
    return load_folder_source(FolderConfig(path=str(path), **change), images)


def packed(folder, tmp_path, together):
    """The same data set as zips."""
    out = tmp_path / "zips"
    out.mkdir()
    for split in ("train", "test"):
        with zipfile.ZipFile(out / ("all.zip" if together else f"{split}.zip"), "a") as file:
            for image in sorted((folder / split).rglob("*.png")):
                file.write(image, image.relative_to(folder))
    return out / "all.zip" if together else out


@pytest.mark.parametrize("kind", ["folder", "zips", "one zip"])
def test_every_image_has_its_label(folder, tmp_path, kind):
    path = folder if kind == "folder" else packed(folder, tmp_path, kind == "one zip")
    source = load(path)
    assert source.classes == ("ant", "bee") and source.image_size == 8
    test = source.split("test")
    red, green = (np.round(test.images[:, 4, 4, channel] * 255) for channel in (0, 1))
    np.testing.assert_array_equal(red, 100 * test.labels)
    np.testing.assert_array_equal(green, [0, 10, 20] * 2)
    train = np.asarray(source.tables.images)
    validation = np.asarray(source.fixed_sets["validation"][0])
    # One image of ten in each class is held out, and no image is in both sets.
    assert len(train) == 18 and len(validation) == 2
    colours = [{tuple(image[4, 4]) for image in images} for images in (train, validation)]
    assert not colours[0] & colours[1]
    np.testing.assert_array_equal(np.asarray(source.tables.labels) * 100, train[:, 4, 4, 0])


def test_held_out_images_are_the_same_at_every_call_and_even(folder):
    files = open_split(folder, "train")
    first, again = hold_out(files, 0.3), hold_out(files, 0.3)
    assert first[1].names == again[1].names and len(first[1].names) == 6
    assert set(first[0].names) | set(first[1].names) == set(files.names)
    np.testing.assert_array_equal(np.bincount(first[1].labels), [3, 3])


@pytest.mark.parametrize("in_memory", (True, False))
def test_validation_images_are_shuffled_with_their_labels(folder, in_memory):
    """Files are sorted by class, but the first few validation images must have all classes."""
    images = dataclasses.replace(IMAGES, in_memory=in_memory)
    split = load_folder_source(FolderConfig(path=str(folder), validation_share=0.5), images).split(
        "validation"
    )
    pixels = np.round(np.asarray(split.images[:]) * 255).astype(int)
    np.testing.assert_array_equal(pixels[:, 4, 4, 0], 100 * split.labels)
    assert set(split.labels[:5]) == {0, 1} and len({*pixels[:, 4, 4, 1]}) > 1
    few = split.some(4)
    np.testing.assert_array_equal(np.round(few.images * 255)[:, 4, 4, 0], 100 * few.labels)
    assert len(few.labels) == 4 and set(few.labels) == {0, 1}
    np.testing.assert_array_equal(split.some(10).images, split.images[:])


def break_one(folder):
    (folder / "train" / "bee" / "3.png").write_bytes(b"\x89PNG and then nothing")


def test_a_bad_image_is_an_error_that_names_it(folder):
    break_one(folder)
    words = r"1 of 20 images cannot be used: train/bee/3.png \(no image .*PNG.*\); repair or remove"
    with pytest.raises(UserError, match=words):
        load(folder, validation="test")


def test_skipped_images_are_counted_and_labels_stay_right(folder, caplog):
    break_one(folder)
    source = load(folder, "skip", validation="test")
    assert "left out 1 of 20: train/bee/3.png" in caplog.text and len(caplog.records) == 1
    images = np.asarray(source.tables.images)
    assert len(images) == 19
    np.testing.assert_array_equal(images[:, 4, 4, 0], 100 * np.asarray(source.tables.labels))


@pytest.mark.parametrize(
    "ruin, change, words",
    [
        (
            lambda path: shutil.rmtree(path / "test"),
            {},
            "no split 'test' in .*: expected test/ or test.zip; found train",
        ),
        (lambda path: None, dict(validation="val"), "no split 'val'"),
        (lambda path: (path / "test" / "wasp").mkdir(), {}, "classes that the training set has not: wasp"),
        (lambda path: [file.unlink() for file in path.glob("test/*/*")], {}, "holds no image"),
        (lambda path: shutil.rmtree(path), {}, "no split 'train' in .*; found nothing"),
        (
            lambda path: [file.write_bytes(b"") for file in path.glob("train/*/*")],
            dict(on_bad_image="skip"),
            "no image can be read",
        ),
        (lambda path: None, dict(path=""), "data.folder.path is empty"),
    ],
)
def test_broken_data_sets_are_refused(folder, ruin, change, words):
    ruin(folder)
    with pytest.raises(UserError, match=words):
        load(**{"path": folder, **change})


def test_a_damaged_zip_is_refused(tmp_path):
    (tmp_path / "train.zip").write_bytes(b"PK\x03\x04 and then nothing")
    with pytest.raises(UserError, match="train.zip cannot be read as a zip"):
        open_split(tmp_path, "train")


def test_the_same_config_gives_the_same_source(folder):
    """Compiled steps belong to a source."""
    config = DataConfig(name="folder", folder=FolderConfig(str(folder)), images=IMAGES)
    source = load_source(config)
    assert load_source(dataclasses.replace(config, folder=FolderConfig(str(folder)))) is source
    images, labels = jax.jit(source.sample, static_argnums=2)(source.tables, jax.random.key(0), 16)
    np.testing.assert_array_equal(np.round(np.asarray(images)[:, 4, 4, 0] * 255), 100 * np.asarray(labels))
    with pytest.raises(UserError, match="'cifra' is not known; choose from digits, folder, tfds"):
        load_source(DataConfig(name="cifra"))


def test_folders_and_arrays_import_no_data_loader():
    """Neither TensorFlow Datasets nor Grain nor TensorFlow is imported."""
    code = (
        "import sys, prance_jax.data.load, prance_jax.config.experiment, prance_jax.experiments.experiment;"
        "print([name for name in ('tensorflow_datasets', 'tensorflow', 'grain') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2]
    )
    assert done.stdout.strip() == "[]", done.stderr
