"""Streams of image files: images, order and labels are right for every reader and host."""

import dataclasses
import itertools
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

from prance_jax.core.errors import UserError
from prance_jax.data.arrays import Normalisation
from prance_jax.data.augment import AugmentConfig
from prance_jax.data.images import stream as module
from prance_jax.data.images.decode import BadImage
from prance_jax.data.images.folder import FolderConfig, load_folder_source
from prance_jax.data.images.records import ImagesConfig
from prance_jax.data.images.stream import Stream
from prance_jax.data.prefetch import prefetch_to_device


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """24 training images in 3 classes; red gives the class, green the number within the class."""
    root = tmp_path_factory.mktemp("stream")
    for split, count in (("train", 8), ("val", 3)):
        for label, name in enumerate("abc"):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                image = Image.new("RGB", (20, 16), (80 * label, 10 * number, 7))
                image.save(root / split / name / f"{number}.png")
    return root


def load(folder, augment=AugmentConfig(), **change):
    images = ImagesConfig(
        **{**dict(in_memory=False, size=8, mean=(0.0,) * 3, std=(1.0,) * 3, threads=4), **change}
    )
    return load_folder_source(FolderConfig(str(folder), validation="val", test="val"), images, augment)


def take(source, count, batch=6, start=0):
    return list(itertools.islice(source.batches(batch, start), count))


def identity(images):
    """Returns (class, number) of every image, from its colour."""
    colour = np.asarray(images)[:, 4, 4]
    return list(zip((colour[:, 0] / 80).round().astype(int), (colour[:, 1] / 10).round().astype(int)))


def test_every_epoch_has_every_image_once_with_its_label(folder):
    batches = take(load(folder), 8)
    for first in (0, 4):
        images = [image for batch in batches[first : first + 4] for image in identity(batch.images)]
        assert sorted(images) == [(label, number) for label in range(3) for number in range(8)]
    for batch in batches:
        assert [label for label, _ in identity(batch.images)] == batch.labels.tolist()
    assert identity(batches[0].images) != identity(batches[4].images)


def test_a_resumed_run_continues_with_the_next_images(folder):
    augment = AugmentConfig(crop="resized", min_area=0.2, repeats=2)
    whole, resumed = take(load(folder, augment), 6), take(load(folder, augment), 3, start=3)
    for ours, theirs in zip(resumed, whole[3:]):
        np.testing.assert_array_equal(ours.images, theirs.images)
        np.testing.assert_array_equal(ours.labels, theirs.labels)
    pairs = identity(whole[0].images)
    assert pairs[::2] == pairs[1::2] and len(set(pairs)) == 3


def test_grain_reads_the_same_batches(folder):
    pytest.importorskip("grain")
    source = load(folder, AugmentConfig(crop="resized"))
    other = dataclasses.replace(source, reader="grain")
    for ours, theirs in zip(take(other, 5, start=2), take(source, 5, start=2)):
        np.testing.assert_array_equal(ours.images, theirs.images)
        np.testing.assert_array_equal(ours.labels, theirs.labels)


def test_hosts_share_a_batch(folder, monkeypatch):
    single = take(load(folder), 3)
    parts = []
    for host in range(2):
        monkeypatch.setattr(module.jax, "process_count", lambda: 2)
        monkeypatch.setattr(module.jax, "process_index", lambda host=host: host)
        parts.append(take(load(folder), 3))
    for whole, *host_parts in zip(single, *parts):
        np.testing.assert_array_equal(np.concatenate([part.images for part in host_parts]), whole.images)
    with pytest.raises(UserError, match="a batch of 7 cannot be shared by 2 hosts"):
        take(load(folder), 1, batch=7)


def test_a_fixed_set_decodes_the_requested_slice(folder):
    source = load(folder)
    split = source.split("test")
    assert split.images.shape == (9, 8, 8, 3) and len(split.images) == 9
    memory = load(folder, in_memory=True).split("test")
    np.testing.assert_array_equal(split.images[2:7], memory.images[2:7])
    np.testing.assert_array_equal(split.images[5:100], memory.images[5:])
    np.testing.assert_array_equal(split.labels, memory.labels)
    with pytest.raises(UserError, match="no set 'train'; there are validation, test"):
        source.split("train")


def test_a_bad_image_is_named_or_replaced_with_its_label(folder, tmp_path, caplog):
    root = tmp_path / "broken"
    shutil.copytree(folder, root)
    (root / "train" / "b" / "3.png").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"train/b/3.png \(.*\) cannot be used"):
        take(load(root), 4)
    for batch in take(load(root, on_bad_image="skip"), 8):
        assert [label for label, _ in identity(batch.images)] == batch.labels.tolist()
    assert [record.getMessage() for record in caplog.records if "train/b/3.png" in record.getMessage()][
        0
    ].endswith("1 so far")
    assert len(caplog.records) == 1


@pytest.mark.parametrize("split", ("validation", "test"))
@pytest.mark.parametrize("damage", ("cut", "16 bits of an unknown sign"))
def test_a_bad_image_of_a_fixed_set_is_found_before_training(folder, tmp_path, caplog, split, damage):
    root = tmp_path / "broken"
    shutil.copytree(folder, root)
    (root / "val").rename(root / split)
    shutil.copytree(folder / "val", root / ("test" if split == "validation" else "validation"))
    file = root / split / "b" / "2.png"
    if damage == "cut":
        noise = np.random.default_rng(0).integers(0, 256, (30, 30, 3), dtype=np.uint8)
        Image.fromarray(noise).save(file, "JPEG")
        file.write_bytes(file.read_bytes()[:-200])
    else:
        Image.fromarray(np.full((30, 30), -7, np.int32)).save(file, "TIFF")
    images = ImagesConfig(in_memory=False, size=8, mean=(0.0,), std=(1.0,), threads=4)
    config = FolderConfig(str(root), validation="validation")
    with pytest.raises(UserError, match=rf"1 of 9 images cannot be used: {split}/b/2.png \(.*\); repair"):
        next(load_folder_source(config, images).batches(6))

    source = load_folder_source(config, dataclasses.replace(images, on_bad_image="skip"))
    kept = source.split(split)
    expected = [(label, number) for label in range(3) for number in range(3) if (label, number) != (1, 2)]
    assert len(kept.images) == 8 and sorted(identity(kept.images[:] * 255)) == expected
    assert [label for label, _ in identity(kept.images[:] * 255)] == kept.labels.tolist()
    next(source.batches(6))
    assert len(caplog.records) == 1 and f"left out 1 of 9: {split}/b/2.png" in caplog.text


@dataclasses.dataclass
class UnknownLabels:
    """Six records whose labels are known only after reading; number 4 has no image."""

    location: str = "a set"
    classes: tuple = ("a", "b")
    labels: None = None

    def __len__(self):
        return 6

    def get(self, index):
        if index == 4:
            raise BadImage("no encoded image")
        return b"P6 1 1 255\n" + bytes([40 * index, 0, 0]), index % 2

    def name(self, index):
        return f"record {index}"


def test_labels_that_are_read_with_their_images_skip_bad_ones():
    normalisation = Normalisation((0.0,) * 3, (1.0,) * 3)
    sets = {"test": UnknownLabels()}
    source = Stream(UnknownLabels(), sets, 4, 1.0, normalisation, AugmentConfig(), on_bad_image="skip")
    split = source.split("test")
    assert split.labels.tolist() == [0, 1, 0, 1, 1]
    np.testing.assert_allclose(split.images[:][:, 0, 0, 0], np.array([0, 40, 80, 120, 200]) / 255, atol=1e-6)
    with pytest.raises(
        UserError, match=r"a set: 1 of 6 images cannot be used: record 4 \(no encoded image\)"
    ):
        dataclasses.replace(source, on_bad_image="error", _usable={}).split("test")


def test_batches_are_prefetched_in_order_and_augmented_on_the_device(folder):
    source = load(folder, AugmentConfig(crop="resized", flip=True))
    prefetched, read = prefetch_to_device(source, 6, start=2), take(source, 2, start=2)
    for expected in read:
        tables = next(prefetched)
        np.testing.assert_array_equal(tables.images, expected.images)
        images, labels = jax.jit(source.sample, static_argnums=2)(tables, jax.random.key(0), 6)
        assert identity(np.asarray(images) * 255) == identity(expected.images)
        np.testing.assert_array_equal(labels, expected.labels)


@pytest.mark.parametrize("count", [4, 9, 20])
def test_some_images_of_a_fixed_set_are_decoded(folder, count):
    """Also where all are wanted: a device takes no images that are still files."""
    split = load(folder).split("test")
    some = split.some(count)
    assert isinstance(some.images, np.ndarray) and len(some.images) == min(count, 9)
    np.testing.assert_array_equal((some.images[:, 4, 4, 0] * 255 / 80).round(), some.labels)
