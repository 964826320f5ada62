"""Any image classification set of TensorFlow Datasets, by name, read without TensorFlow.

Sets prepared as array_record are read by random access (`as_data_source`), pictures decoded by Pillow. Preparing a set is
TensorFlow's work, once, by a command that the error names.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from prance_jax.core.errors import UserError
from prance_jax.data.arrays import Arrays
from prance_jax.data.augment import AugmentConfig
from prance_jax.data.images.decode import BadPicture
from prance_jax.data.images.image_source import image_source
from prance_jax.data.images.records import ImagesConfig
from prance_jax.data.images.stream import Stream


@dataclass(frozen=True)
class TfdsConfig:
    """name: of the set, say 'cifar10', 'imagenet2012', 'imagenette'. data_dir: where it was prepared; by default where TFDS keeps
    its sets. train, validation, test: splits, slices allowed. image, label: names of the features."""

    name: str = "cifar10"
    data_dir: str | None = None
    train: str = "train[:90%]"
    validation: str = "train[90%:]"
    test: str = "test"
    image: str = "image"
    label: str = "label"


@dataclass(frozen=True)
class TfdsRecords:
    """One split as `image_source` reads it."""

    where: str
    classes: tuple[str, ...]
    data: Any = field(repr=False)
    image: str = "image"
    label: str = "label"
    labels: None = None

    def __len__(self) -> int:
        return len(self.data)

    def get(self, index: int) -> tuple[bytes, int]:
        """Raises BadPicture for a record without a picture, UserError for a label out of range."""
        record = self.data[index]
        label = int(np.asarray(record[self.label]))
        if not 0 <= label < len(self.classes):
            raise UserError(
                f"{self.where}: label {label} of record {index} is outside 0 .. {len(self.classes) - 1}"
            )
        if not isinstance(record[self.image], bytes):
            raise BadPicture(f"the feature {self.image!r} holds no encoded picture")
        return record[self.image], label

    def name(self, index: int) -> str:
        return f"record {index}"


def load_tfds_source(
    config: TfdsConfig, images: ImagesConfig = ImagesConfig(), augment: AugmentConfig = AugmentConfig()
) -> Arrays | Stream:
    """A source of the set; a stream is read by Grain.

    Raises UserError where a package is missing, the set is not prepared, or has no such split or feature.
    """
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise UserError(
            f"data.name 'tfds' needs packages that are not there ({error}): pip install 'prance-jax[tfds]'"
        ) from error
    try:
        builder = tfds.builder(config.name, data_dir=config.data_dir, file_format="array_record")
        prepared = builder.is_prepared()
    except (tfds.core.DatasetNotFoundError, ModuleNotFoundError) as error:
        raise UserError(
            f"TensorFlow Datasets cannot open {config.name!r}: {str(error).splitlines()[0]}"
        ) from error
    if not prepared:
        where = f" --data_dir {config.data_dir}" if config.data_dir else ""
        raise UserError(
            f"{config.name} is not prepared as array_record in {builder.data_path.parent}; once, where TensorFlow is "
            f"installed: tfds build {config.name} --file_format array_record{where}"
        )
    features = builder.info.features
    for name, kind in ((config.image, tfds.features.Image), (config.label, tfds.features.ClassLabel)):
        if not isinstance(dict(features.items()).get(name), kind):
            raise UserError(
                f"{config.name} has no feature {name!r} of kind {kind.__name__}; it has {', '.join(sorted(features))}"
            )
    classes = tuple(features[config.label].names)

    def records(split: str) -> TfdsRecords:
        try:
            data = builder.as_data_source(split=split, decoders={config.image: tfds.decode.SkipDecoding()})
        except (ValueError, KeyError, AssertionError) as error:
            raise UserError(
                f"{config.name} has no split {split!r}; it has {', '.join(builder.info.splits)}"
            ) from error
        return TfdsRecords(f"{config.name}:{split}", classes, data, config.image, config.label)

    sets = {name: records(getattr(config, name)) for name in ("train", "validation", "test")}
    return image_source(images, augment, sets, reader="grain")
