"""Defines encoded images by number (`Records`) and how they are decoded (`ImagesConfig`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from prance_jax.core.fields import Fraction, Positive, Repeats, Share, Side, check_fields
from prance_jax.data.arrays import Normalisation

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_GREY = (0.299, 0.587, 0.114)  # shares of red, green and blue (ITU-R 601-2), as Pillow converts


@dataclass(frozen=True)
class ImagesConfig:
    """How image files are decoded and drawn, for folders and TensorFlow Datasets.

    Attributes:
      size: side of an image in pixels.
      crop: side of the central square that evaluation keeps, over the shorter side of the image.
      channels: 3 for RGB, 1 for grey. All files are converted.
      mean: mean of values in [0, 1]; one number, or one for each channel. For grey images three numbers
        are weighted as the conversion weights red, green and blue.
      std: standard deviation of values in [0, 1]; the same.
      exif_orientation: whether images are turned as their orientation tags state. By default they
        are read as stored, as torchvision does (Pillow turns TIFF files always).
      in_memory: whether all images are decoded at the start and kept on the device, for small sets.
        If not, images are read when needed, and random crops use the whole image.
      on_bad_image: 'error' or 'skip', for an image of any split that cannot be used or a class
        folder without images; 'skip' leaves it out with a warning that counts.
      threads: threads that decode; None is one per core, more are slower.
      balance_exponent: how often a class is drawn for training: its number of images to the power of
        this. 1 draws all images equally often, 0 all classes, 0.5 is square-root sampling; see
        `data.source.ClassBalance`.
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
    balance_exponent: Fraction = 1.0

    def __post_init__(self):
        check_fields(self, "images")
        self.normalisation  # checks mean and std

    @property
    def normalisation(self) -> Normalisation:
        """The normalisation of all images."""
        mean, std = (
            (float(np.dot(_GREY, values)),) if self.channels == 1 and np.size(values) == 3 else values
            for values in (self.mean, self.std)
        )
        return Normalisation.by_channel(mean, std, self.channels)


class Records(Protocol):
    """A split of encoded images, by number.

    Attributes:
      location: name of the split, for messages.
      classes: class names.
      labels: int32 [N], or [N, classes] of zeros and ones where an image may have several; None where a
        label is known only after reading its image.
    """

    location: str
    classes: tuple[str, ...]
    labels: np.ndarray | None

    def __len__(self) -> int: ...

    def get(self, index: int) -> tuple[bytes, int | np.ndarray]:
        """Returns the bytes of an image file and its label, or int32 [classes].

        Raises:
          BadImage: the file cannot be read.
        """

    def name(self, index: int) -> str:
        """Returns the name of an image, for messages."""
