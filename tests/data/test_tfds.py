"""A set of TensorFlow Datasets, written and read without TensorFlow."""

import io
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from prance_jax.core.errors import UserError
from prance_jax.data.images.records import ImagesConfig
from prance_jax.data.images.tfds import TfdsConfig, load_tfds_source
from prance_jax.data.load import DataConfig, load_source

tfds = pytest.importorskip("tensorflow_datasets")
pytest.importorskip("array_record")
pytest.importorskip("grain")

IMAGES = ImagesConfig(size=8, crop=1.0, mean=(0.0,) * 3, std=(1.0,) * 3, threads=2)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """The prepared set 'toy': 30 training and 6 test images; red gives the class, green the number."""
    root = tmp_path_factory.mktemp("tfds")
    folder = root / "toy" / "1.0.0"
    folder.mkdir(parents=True)
    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "label": tfds.features.ClassLabel(names=["ant", "bee", "cat"]),
        }
    )
    identity = tfds.core.dataset_builder.dataset_info.DatasetIdentity(
        name="toy", version=tfds.core.Version("1.0.0"), data_dir=str(folder), module_name="toy"
    )
    info = tfds.core.DatasetInfo(builder=identity, features=features, description="toy")
    writer = tfds.core.SequentialWriter(info, 100, file_format="array_record", overwrite=True)
    writer.initialize_splits(["train", "test"])
    for split, count in (("train", 30), ("test", 6)):
        for number in range(count):
            stream = io.BytesIO()
            Image.new("RGB", (10, 8), (80 * (number % 3), 5 * number, 0)).save(stream, "PNG")
            writer.add_examples({split: [{"image": stream.getvalue(), "label": number % 3}]})
    writer.close_all()
    info.write_to_directory(str(folder))
    return root


def config(prepared, **change):
    return TfdsConfig(name="toy", data_dir=str(prepared), **change)


def colours(images):
    pixel = np.round(np.asarray(images)[:, 4, 4] * 255).astype(int)
    return pixel[:, 0] // 80, pixel[:, 1] // 5


def test_a_set_in_memory(prepared):
    source = load_source(DataConfig(name="tfds", tfds=config(prepared), images=IMAGES))
    assert source.classes == ("ant", "bee", "cat") and len(source.tables.labels) == 27
    validation = source.split("validation")
    np.testing.assert_array_equal(colours(validation.images)[0], validation.labels)
    np.testing.assert_array_equal(np.sort(colours(validation.images)[1]), [27, 28, 29])
    assert "tensorflow" not in sys.modules


def test_a_stream_read_by_grain(prepared):
    import dataclasses

    source = load_tfds_source(config(prepared), dataclasses.replace(IMAGES, in_memory=False))
    batches = source.batches(9)
    tables = [next(batches) for _ in range(3)]
    numbers = np.concatenate([colours(batch.images / 255)[1] for batch in tables])
    np.testing.assert_array_equal(np.sort(numbers), np.arange(27))
    for batch in tables:
        np.testing.assert_array_equal(colours(batch.images / 255)[0], batch.labels)
    images, labels = jax.jit(source.sample, static_argnums=2)(tables[0], jax.random.key(0), 9)
    np.testing.assert_array_equal(colours(images)[0], labels)
    assert "tensorflow" not in sys.modules


@pytest.mark.parametrize(
    "change, words",
    [
        (dict(test="tset"), "toy has no split 'tset'; it has"),
        (dict(label="kind"), "toy has no feature 'kind' of kind ClassLabel; it has image, label"),
    ],
)
def test_missing_splits_and_features_are_errors(prepared, change, words):
    with pytest.raises(UserError, match=words):
        load_tfds_source(config(prepared, **change), IMAGES)


def test_the_error_for_a_set_that_is_not_prepared_gives_the_command(tmp_path):
    with pytest.raises(UserError, match="tfds build cifar10 --file_format array_record --data_dir"):
        load_tfds_source(TfdsConfig(name="cifar10", data_dir=str(tmp_path)), IMAGES)
    with pytest.raises(UserError, match="cannot open 'cifar10' in none://bucket/data: .*none://"):
        load_tfds_source(TfdsConfig(name="cifar10", data_dir="none://bucket/data"), IMAGES)
    with pytest.raises(UserError, match="cannot open 'cifra10'"):
        load_tfds_source(TfdsConfig(name="cifra10", data_dir=str(tmp_path)), IMAGES)
