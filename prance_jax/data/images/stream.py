"""A data source that is too large for memory: pictures are read, cut and decoded ahead of the step that needs them.

Which pictures make up step `n`, and where they are cut, follows from the seed and `n` alone: a run that is stopped continues
with the very next pictures, and several hosts each read their part of the same batch.
"""

from __future__ import annotations

import functools
import itertools
import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import jax
import numpy as np

from prance_jax.core.errors import UserError
from prance_jax.data import crops
from prance_jax.data.arrays import ArrayTables, Scale
from prance_jax.data.augment import AugmentConfig, augment
from prance_jax.data.images.decode import BadPicture, crop_image, decode_image
from prance_jax.data.source import Split, shuffled

if TYPE_CHECKING:
    from prance_jax.data.images.records import Records


_log = logging.getLogger(__name__)
_AHEAD = 2  # batches that are read while the device works
_TASK = 16  # pictures that a thread reads at a time: handed over one by one, small ones take 5 % longer


class LazyImages:
    """Looks like an array [N, S, S, 3] of normalised images; a slice is decoded when it is asked for. order: [N], which
    picture stands where."""

    def __init__(
        self, records: Records, order: np.ndarray, side: int, share: float, scale: Scale, threads: int
    ):
        self._records, self._order = records, order
        self._side, self._share, self._scale = side, share, scale
        self._threads = threads
        self.shape, self.dtype = (len(records), side, side, 3), np.dtype(np.float32)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: slice | Sequence[int]) -> np.ndarray:
        numbers = self._order[index].tolist()
        with ThreadPoolExecutor(self._threads) as pool:
            pixels = list(pool.map(self._one, numbers))
        if not pixels:
            return np.zeros((0, *self.shape[1:]), self.dtype)
        return self._scale.normalise(self._scale.unit(np.stack(pixels)))

    def _one(self, index: int) -> np.ndarray:
        try:
            image = decode_image(self._records.get(index)[0])
        except BadPicture as error:
            raise UserError(
                f"{self._records.where}: {self._records.name(index)} cannot be used ({error})"
            ) from error
        return crop_image(image, self._side, crops.evaluation(image.height, image.width, self._share))


@dataclass(frozen=True, eq=False)
class Stream:
    """The data source (`data.source.Source`) of `Records`.

    train: the training set. fixed: validation and test with their labels. crop: share of the shorter side that evaluation
    keeps. augment: `crop` 'resized' is done while decoding, from the whole picture; the rest on the device.
    on_bad_image: 'error', or 'skip': the next picture takes the place of one that cannot be read, with its own label, and a
    warning counts them. reader: what reads ahead, 'threads' of this process or 'grain' (its iterators over many threads); which
    pictures they give is the same. seed: of order and crops.
    """

    train: Records
    fixed: dict[str, tuple[Records, np.ndarray]]
    image_size: int
    crop: float
    scale: Scale
    augment: AugmentConfig
    on_bad_image: Literal["error", "skip"] = "error"
    threads: int = 16
    reader: Literal["threads", "grain"] = "threads"
    seed: int = 0
    channels: int = 3
    _bad: set[int] = field(default_factory=set, repr=False)

    @property
    def classes(self) -> tuple[str, ...]:
        return self.train.classes

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def mean(self) -> tuple[float, ...]:
        return self.scale.mean

    @property
    def std(self) -> tuple[float, ...]:
        return self.scale.std

    def batches(self, batch: int, start: int = 0) -> Iterator[ArrayTables]:
        """The batch of step `start`, `start` + 1, ...: images uint8 [batch, S, S, 3], labels int32 [batch].

        Raises UserError for a picture that cannot be read, unless those are skipped.
        """
        hosts, own = jax.process_count(), jax.process_index()
        if batch % hosts:
            raise UserError(
                f"a batch of {batch} cannot be shared by {hosts} hosts; make it a multiple of {hosts}"
            )
        rows = range(own * batch // hosts, (own + 1) * batch // hosts)
        read = _read_by_grain if self.reader == "grain" else _read_by_threads
        yield from read(self._training, batch, rows, start, self.threads)

    def sample(self, tables: ArrayTables, key: jax.Array, batch: int) -> tuple[jax.Array, jax.Array]:
        """The batch of `tables`, augmented."""
        return self._augmented(tables, key, self.augment)

    def sample_plain(self, tables: ArrayTables, key: jax.Array, batch: int) -> tuple[jax.Array, jax.Array]:
        """The batch of `tables`, cropped and flipped only."""
        return self._augmented(tables, key, self.augment.plain)

    def split(self, name: str) -> Split:
        """Raises UserError for a set that is not there."""
        if name not in self.fixed:
            raise UserError(
                f"{self.train.where} has no set {name!r}; there are {', '.join(self.fixed) or 'none'}"
            )
        records, labels = self.fixed[name]
        order = shuffled(len(labels)) if name == "validation" else np.arange(len(labels))
        images = LazyImages(records, order, self.image_size, self.crop, self.scale, self.threads)
        return Split(images, labels[order], {})

    def to_unit(self, images: np.ndarray) -> np.ndarray:
        return self.scale.undo(images)

    def _augmented(self, tables: ArrayTables, key: jax.Array, config: AugmentConfig):
        # A resized crop was taken from the whole picture when it was decoded.
        config = config.cropped if config.crop == "resized" else config
        images = self.scale.unit(tables.images)
        return augment(config, images, tables.labels, key, self.scale.normalise, self.num_classes)

    def _training(self, position: int) -> tuple[np.ndarray, int]:
        """Picture number `position` of the endless training sequence, cut."""
        count, turn = len(self.train), position // self.augment.repeats
        index = int(_order(self.seed, turn // count, count)[turn % count])
        for _ in range(count):
            try:
                data, label = self.train.get(index)
                return self._cut(decode_image(data), position), label
            except BadPicture as error:
                self._refuse(index, error)
                index = (index + 1) % count
        raise UserError(f"{self.train.where}: not one picture can be read")

    def _cut(self, image, position: int) -> np.ndarray:
        if self.augment.crop != "resized":
            return crop_image(image, self.image_size, crops.evaluation(image.height, image.width, self.crop))
        uniform = np.random.default_rng((self.seed, position)).random((crops.TRIES, 4))
        box = crops.random_resized(uniform, image.height, image.width, self.augment.min_area)
        return crop_image(image, self.image_size, box)

    def _refuse(self, index: int, error: BadPicture) -> None:
        text = f"{self.train.name(index)} ({error})"
        if self.on_bad_image == "error":
            raise UserError(
                f"{self.train.where}: {text} cannot be used; mend or remove it, or set on_bad_image to 'skip'"
            ) from error
        if index not in self._bad:
            self._bad.add(index)
            _log.warning("%s: left out %s; %d so far", self.train.where, text, len(self._bad))


def _read_by_threads(
    one: Callable[[int], tuple[np.ndarray, int]], batch: int, rows: range, start: int, threads: int
) -> Iterator[ArrayTables]:
    waiting: deque = deque()
    pool = ThreadPoolExecutor(threads)
    tasks = [rows[first : first + _TASK] for first in range(0, len(rows), _TASK)]
    read = lambda step, task: [one(step * batch + row) for row in task]
    try:
        for step in itertools.count(start):
            waiting.append([pool.submit(read, step, task) for task in tasks])
            if len(waiting) > _AHEAD:
                yield _stacked([picture for future in waiting.popleft() for picture in future.result()])
    finally:
        pool.shutdown(cancel_futures=True)  # what was read ahead of the last step is not needed


def _read_by_grain(
    one: Callable[[int], tuple[np.ndarray, int]], batch: int, rows: range, start: int, threads: int
) -> Iterator[ArrayTables]:
    import grain

    count = len(rows)
    numbers = grain.MapDataset.range(start * count, 2**62)
    pictures = numbers.map(lambda own: one(own // count * batch + rows[own % count]))
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=_AHEAD * count)
    yield from pictures.to_iter_dataset(options).batch(count, batch_fn=_stacked)


def _stacked(pictures: Sequence[tuple[np.ndarray, int]]) -> ArrayTables:
    pixels, labels = zip(*pictures)
    return ArrayTables(np.stack(pixels), np.asarray(labels, np.int32))


@functools.lru_cache(maxsize=3)
def _order(seed: int, epoch: int, count: int) -> np.ndarray:
    """The order of one pass over the training set."""
    return np.random.default_rng((seed, epoch)).permutation(count)
