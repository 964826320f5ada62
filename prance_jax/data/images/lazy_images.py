"""A fixed set of image files that is decoded slice by slice, for evaluation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from prance_jax.core.errors import UserError
from prance_jax.data.arrays import Normalisation
from prance_jax.data.images.decode import BadImage
from prance_jax.data.images.records import Records


class LazyImages:
    """Behaves like an array float32 [N, S, S, C] of normalised images; indexing decodes a slice.

    Args:
      records: the image files.
      order: int [N], number of the image at each position.
      shape: (S, S, C).
      load: bytes of a file -> uint8 [S, S, C]; it may raise BadImage.
      normalisation: of the images.
      threads: number of threads that decode.
    """

    def __init__(
        self,
        records: Records,
        order: np.ndarray,
        shape: tuple[int, int, int],
        load: Callable[[bytes], np.ndarray],
        normalisation: Normalisation,
        threads: int,
    ):
        self._records, self._order, self._load = records, order, load
        self._normalisation, self._threads = normalisation, threads
        self.shape, self.dtype = (len(order), *shape), np.dtype(np.float32)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: slice | Sequence[int]) -> np.ndarray:
        numbers = self._order[index].tolist()
        with ThreadPoolExecutor(self._threads) as pool:
            pixels = list(pool.map(self._read, numbers))
        if not pixels:
            return np.zeros((0, *self.shape[1:]), self.dtype)
        return self._normalisation.normalise(self._normalisation.to_float(np.stack(pixels)))

    def _read(self, index: int) -> np.ndarray:
        try:
            return self._load(self._records.get(index)[0])
        except BadImage as error:
            raise UserError(
                f"{self._records.location}: {self._records.name(index)} cannot be used ({error})"
            ) from error
