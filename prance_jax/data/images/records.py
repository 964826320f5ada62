"""Defines encoded images by number (`Records`) and how they are decoded (`ImagesConfig`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from prance_jax.core.fields import Fraction, Positive, Repeats, Share, Side, check_fields
from prance_jax.data.arrays import Normalisation

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class ImagesConfig:
    """How image files are decoded, for folders and TensorFlow Datasets.

    Attributes:
      size: side of an image in pixels.
      crop: side of the central square that evaluation keeps, over the shorter side of the image.
      channels: 3 for RGB, 1 for grey. All files are converted; `mean` and `std` must fit.
      mean: mean of values in [0, 1]; one number, or one for each channel.
      std: standard deviation of values in [0, 1]; the same.
      exif_orientation: whether images are turned as their orientation tags state. By default they
        are read as stored, as torchvision does (Pillow turns TIFF files always).
      in_memory: whether all images are decoded at the start and kept on the device, for small sets.
        If not, images are read when needed, and random crops use the whole image.
      on_bad_image: 'error' or 'skip', for an image of any split that cannot be used or a class
        folder without images; 'skip' leaves it out with a warning that counts.
      threads: threads that decode; None is one per core, more are slower.
    """

    size: Side = 224
    crop: Share = 0.875
    channels: Literal[1, 3] = 3
    mean: tuple[Fraction, ...] = IMAGENET_MEAN
    std: tuple[Positive, ...] = IMAGENET_STD
    exif_orientation: bool = False
    in_memory: bool = True
    on_bad_image: Literal["error", "skip"] = "error"
    threads: Repeats | None = None

    def __post_init__(self):
        check_fields(self, "images")
        self.normalisation  # checks mean and std

    @property
    def normalisation(self) -> Normalisation:
        """The normalisation of all images."""
        return Normalisation.by_channel(self.mean, self.std, self.channels)


class Records(Protocol):
    """A split of encoded images, by number.

    Attributes:
      location: name of the split, for messages.
      classes: class names.
      labels: int32 [N]; None where a label is known only after reading its image.
    """

    location: str
    classes: tuple[str, ...]
    labels: np.ndarray | None

    def __len__(self) -> int: ...

    def get(self, index: int) -> tuple[bytes, int]:
        """Returns the bytes of an image file and its label.

        Raises:
          BadImage: the file cannot be read.
        """

    def name(self, index: int) -> str:
        """Returns the name of an image, for messages."""
