"""Reads any image classification set of TensorFlow Datasets by name, without TensorFlow.

Sets prepared as array_record are read by random access (`as_data_source`); Pillow decodes the
images. Preparing a set needs TensorFlow, once; the error for a set that is not prepared gives the
command.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from prance_jax.core.errors import UserError
from prance_jax.data.arrays import Arrays
from prance_jax.data.augment import AugmentConfig
from prance_jax.data.images.decode import BadImage
from prance_jax.data.images.image_source import image_source
from prance_jax.data.images.records import ImagesConfig
from prance_jax.data.images.stream import Stream


@dataclass(frozen=True)
class TfdsConfig:
    """Which set of TensorFlow Datasets is used.

    Attributes:
      name: of the set, such as 'cifar10', 'imagenet2012' or 'imagenette'.
      data_dir: folder in which it was prepared; None is the default folder of TFDS.
      train: training split; may be a slice.
      validation: validation split; may be a slice.
      test: test split; may be a slice.
      image: name of the image feature.
      label: name of the label feature.
    """

    name: str = "cifar10"
    data_dir: str | None = None
    train: str = "train[:90%]"
    validation: str = "train[90%:]"
    test: str = "test"
    image: str = "image"
    label: str = "label"


@dataclass(frozen=True)
class TfdsRecords:
    """One split of a set (`data.images.records.Records`).

    Attributes:
      location: name of the set and split, for messages.
      classes: class names.
      data: sequence of records: feature name -> value.
      image: name of the image feature.
      label: name of the label feature.
      labels: None: labels are read with their images.
    """

    location: str
    classes: tuple[str, ...]
    data: Any = field(repr=False)
    image: str = "image"
    label: str = "label"
    labels: None = None

    def __len__(self) -> int:
        return len(self.data)

    def get(self, index: int) -> tuple[bytes, int]:
        """Returns the bytes of an image and its label.

        Raises:
          BadImage: the record has no encoded image.
          UserError: the label is out of range.
        """
        record = self.data[index]
        label = int(np.asarray(record[self.label]))
        if not 0 <= label < len(self.classes):
            raise UserError(
                f"{self.location}: label {label} of record {index} is outside 0 .. {len(self.classes) - 1}"
            )
        if not isinstance(record[self.image], bytes):
            raise BadImage(f"the feature {self.image!r} holds no encoded image")
        return record[self.image], label

    def name(self, index: int) -> str:
        """Returns the name of a record, for messages."""
        return f"record {index}"


def load_tfds_source(
    config: TfdsConfig, images: ImagesConfig = ImagesConfig(), augment: AugmentConfig = AugmentConfig()
) -> Arrays | Stream:
    """Makes a data source of a set of TensorFlow Datasets; Grain reads streams.

    Args:
      config: which set.
      images: how its images are decoded.
      augment: augmentation of training images.

    Raises:
      UserError: a package is missing, or the set is not prepared or has no such split or feature.
    """
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise UserError(
            f"data.name 'tfds' needs packages that are missing ({error}): pip install 'prance-jax[tfds]'"
        ) from error
    try:
        builder = tfds.builder(config.name, data_dir=config.data_dir, file_format="array_record")
        prepared = builder.is_prepared()
    except Exception as error:  # a missing set, package, file system or permission: many types
        folder = f" in {config.data_dir}" if config.data_dir else ""
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(f"TensorFlow Datasets cannot open {config.name!r}{folder}: {reason}") from error
    if not prepared:
        option = f" --data_dir {config.data_dir}" if config.data_dir else ""
        raise UserError(
            f"{config.name} is not prepared as array_record in {builder.data_path.parent}; run once, where "
            f"TensorFlow is installed: tfds build {config.name} --file_format array_record{option}"
        )
    features = builder.info.features
    for name, kind in ((config.image, tfds.features.Image), (config.label, tfds.features.ClassLabel)):
        if not isinstance(dict(features.items()).get(name), kind):
            raise UserError(
                f"{config.name} has no feature {name!r} of kind {kind.__name__}; "
                f"it has {', '.join(sorted(features))}"
            )
    classes = tuple(features[config.label].names)

    def open_split(split: str) -> TfdsRecords:
        try:
            data = builder.as_data_source(split=split, decoders={config.image: tfds.decode.SkipDecoding()})
        except (ValueError, KeyError, AssertionError) as error:
            raise UserError(
                f"{config.name} has no split {split!r}; it has {', '.join(builder.info.splits)}"
            ) from error
        return TfdsRecords(f"{config.name}:{split}", classes, data, config.image, config.label)

    splits = {name: open_split(getattr(config, name)) for name in ("train", "validation", "test")}
    return image_source(images, augment, splits, reader="grain")
