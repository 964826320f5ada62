"""Encoded pictures by number, and how they become images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from prance_jax.core.errors import UserError

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class ImagesConfig:
    """How pictures become images, wherever they come from.

    size: side in pixels. crop: share of a picture's shorter side that is kept, in the middle. mean, std: by channel, of
      values in [0, 1].
    in_memory: whether all pictures are decoded at the start and kept on the device, right for small sets; else they are read as
      they are needed, and random crops are taken from the whole picture.
    on_bad_image: whether a picture that cannot be read, or a class without one, is an error or is left out with a warning
      that counts them. threads: that decode; by default one a core, more are slower.
    """

    size: int = 224
    crop: float = 0.875
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    in_memory: bool = True
    on_bad_image: Literal["error", "skip"] = "error"
    threads: int | None = None

    def __post_init__(self):
        if not 0 < self.crop <= 1 or self.size < 1 or (self.threads is not None and self.threads < 1):
            raise UserError(
                "data.images: crop in (0, 1], size and threads of 1 or more are needed, not "
                f"{self.crop}, {self.size} and {self.threads}"
            )


class Records(Protocol):
    """Encoded pictures by number. where: for messages. labels: int32 [N], None where only reading tells them."""

    where: str
    classes: tuple[str, ...]
    labels: np.ndarray | None

    def __len__(self) -> int: ...

    def get(self, index: int) -> tuple[bytes, int]:
        """The bytes of a file and its label; raises BadPicture."""

    def name(self, index: int) -> str:
        """For messages."""
