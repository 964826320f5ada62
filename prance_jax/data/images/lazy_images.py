"""A fixed set of image files that is decoded slice by slice, for evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from prance_jax.core.errors import UserError
from prance_jax.data import crops
from prance_jax.data.arrays import Normalisation
from prance_jax.data.images.decode import BadImage, crop_image, decode_image
from prance_jax.data.images.records import Records


class LazyImages:
    """Behaves like an array float32 [N, S, S, 3] of normalised images; indexing decodes a slice.

    Args:
      records: the image files.
      order: int [N], number of the image at each position.
      side: side of an image in pixels.
      share: side of the central square that is kept, over the shorter side of the image.
      normalisation: of the images.
      threads: number of threads that decode.
    """

    def __init__(
        self,
        records: Records,
        order: np.ndarray,
        side: int,
        share: float,
        normalisation: Normalisation,
        threads: int,
    ):
        self._records, self._order = records, order
        self._side, self._share, self._normalisation = side, share, normalisation
        self._threads = threads
        self.shape, self.dtype = (len(records), side, side, 3), np.dtype(np.float32)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: slice | Sequence[int]) -> np.ndarray:
        numbers = self._order[index].tolist()
        with ThreadPoolExecutor(self._threads) as pool:
            pixels = list(pool.map(self._load, numbers))
        if not pixels:
            return np.zeros((0, *self.shape[1:]), self.dtype)
        return self._normalisation.normalise(self._normalisation.to_float(np.stack(pixels)))

    def _load(self, index: int) -> np.ndarray:
        try:
            image = decode_image(self._records.get(index)[0])
        except BadImage as error:
            raise UserError(
                f"{self._records.location}: {self._records.name(index)} cannot be used ({error})"
            ) from error
        return crop_image(image, self._side, crops.evaluation(image.height, image.width, self._share))
