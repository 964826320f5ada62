"""A data source that is too large for memory: images are read and decoded ahead of their step.

The seed and the step number alone decide which images a batch has and how they are cropped. A run
that is resumed continues with the very next images, and each of several hosts reads its part of the
same batch.
"""

from __future__ import annotations

import functools
import itertools
import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Literal

import jax
import numpy as np

from prance_jax.core.errors import UserError
from prance_jax.data import crops
from prance_jax.data.arrays import ArrayTables, Normalisation, NormalisedSource
from prance_jax.data.augment import AugmentConfig, augment
from prance_jax.data.images.decode import BadImage, crop_image, decode_image
from prance_jax.data.images.lazy_images import LazyImages
from prance_jax.data.images.records import Records
from prance_jax.data.images.usable import usable_images
from prance_jax.data.source import ClassBalance, Split, shuffled

_log = logging.getLogger(__name__)
_BATCHES_AHEAD = 2  # batches that are read while the device works
_IMAGES_PER_TASK = 16  # images that a thread reads at a time; one by one, small images take 5 % longer


@dataclass(frozen=True, eq=False)
class Stream(NormalisedSource):
    """The data source (`data.source.Source`) of image files that are read during training.

    Attributes:
      train: the training set.
      fixed_sets: validation and test sets. All their images are tried before the first batch.
      image_size: side of an image in pixels.
      crop: side of the central square that evaluation keeps, over the shorter side of the image.
      normalisation: of all images.
      augment: augmentation. `crop` 'resized' is applied to the whole image while decoding, all else
        on the device.
      on_bad_image: 'error', or 'skip': the next image replaces a training image that cannot be
        read, with its own label; fixed sets are without such images; a warning counts them.
      threads: number of threads that decode.
      reader: 'threads' of this process, or 'grain', the package's own threads. Both give the same
        images.
      seed: of order and crops.
      channels: of an image, 3 or 1.
      exif_orientation: see `ImagesConfig`.
      balance_exponent: see `ImagesConfig`; not 1 only where the labels of `train` are known.
    """

    train: Records
    fixed_sets: dict[str, Records]
    image_size: int
    crop: float
    normalisation: Normalisation
    augment: AugmentConfig
    on_bad_image: Literal["error", "skip"] = "error"
    threads: int = 16
    reader: Literal["threads", "grain"] = "threads"
    seed: int = 0
    channels: int = 3
    exif_orientation: bool = False
    balance_exponent: float = 1.0
    _bad_images: set[int] = field(default_factory=set, repr=False)
    _usable: dict[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict, repr=False)

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names."""
        return self.train.classes

    @property
    def multi_label(self) -> bool:
        """Whether an image may have several labels."""
        return np.ndim(self.train.labels) == 2

    def batches(self, batch: int, start: int = 0) -> Iterator[ArrayTables]:
        """Yields this host's part of the batches of step `start`, `start` + 1 and so on.

        Args:
          batch: images of one step, over all hosts.
          start: first step.

        Yields:
          Images uint8 [batch / hosts, S, S, C] and labels int32 [batch / hosts] (or [.., classes]).

        Raises:
          UserError: hosts cannot share the batch, or an image cannot be read and `on_bad_image` is
            'error'; of fixed sets before the first batch.
        """
        num_hosts, host = jax.process_count(), jax.process_index()
        if batch % num_hosts:
            raise UserError(
                f"a batch of {batch} cannot be shared by {num_hosts} hosts; make it a multiple of {num_hosts}"
            )
        for name in self.fixed_sets:
            self._usable_images(name)
        rows = range(host * batch // num_hosts, (host + 1) * batch // num_hosts)
        read = _read_by_grain if self.reader == "grain" else _read_by_threads
        yield from read(self._training_image, batch, rows, start, self.threads)

    def sample(self, tables: ArrayTables, key: jax.Array, batch: int) -> tuple[jax.Array, jax.Array]:
        """Augments the batch of `tables`.

        Args:
          tables: one batch of `batches`.
          key: random key.
          batch: not used; the batch has the size of `tables`.

        Returns:
          Images float32 [batch, S, S, C], normalised, and labels (see `augment.augment`).
        """
        return self._augment(tables, key, self.augment)

    def sample_plain(self, tables: ArrayTables, key: jax.Array, batch: int) -> tuple[jax.Array, jax.Array]:
        """Crops and flips the batch of `tables`, without other augmentation.

        Args:
          tables: one batch of `batches`.
          key: random key.
          batch: not used; the batch has the size of `tables`.

        Returns:
          Images float32 [batch, S, S, C], normalised, and labels, not mixed.
        """
        return self._augment(tables, key, self.augment.plain)

    def split(self, name: str) -> Split:
        """Returns the fixed set `name`; its images are decoded when indexed.

        Raises:
          UserError: there is no such set, or none of its images can be read.
        """
        if name not in self.fixed_sets:
            raise UserError(
                f"{self.train.location} has no set {name!r}; there are {', '.join(self.fixed_sets) or 'none'}"
            )
        records = self.fixed_sets[name]
        if self.on_bad_image == "error" and records.labels is not None:
            numbers, labels = np.arange(len(records)), records.labels  # reading a slice finds a bad image
        else:
            numbers, labels = self._usable_images(name)
        order = shuffled(len(labels)) if name == "validation" else np.arange(len(labels))
        shape = (self.image_size, self.image_size, self.channels)
        images = LazyImages(
            records, numbers[order], shape, self._evaluation_image, self.normalisation, self.threads
        )
        return Split(images, labels[order], {})

    def _augment(self, tables: ArrayTables, key: jax.Array, config: AugmentConfig):
        # A resized crop is taken from the whole image while decoding.
        config = config.cropped if config.crop == "resized" else config
        images = self.normalisation.to_float(tables.images)
        return augment(config, images, tables.labels, key, self.normalisation.normalise, self.num_classes)

    def _training_image(self, position: int) -> tuple[np.ndarray, int]:
        """Returns image number `position` of the endless training sequence and its label."""
        count, number = len(self.train), position // self.augment.repeats
        order = _epoch_order(self.seed, number // count, count, self._balance)
        index = int(self._by_class[order[number % count]] if self._balance else order[number % count])
        for _ in range(count):
            try:
                data, label = self.train.get(index)
                return self._crop(self._decode(data), position), label
            except BadImage as error:
                self._report_bad_image(index, error)
                index = (index + 1) % count
        raise UserError(f"{self.train.location}: no image can be read")

    @functools.cached_property
    def _balance(self) -> ClassBalance | None:
        """How training images are drawn; None: each once in an epoch."""
        if self.balance_exponent == 1:
            return None
        counts = np.bincount(self.train.labels, minlength=self.num_classes)
        return ClassBalance(tuple(counts.tolist()), self.balance_exponent)

    @functools.cached_property
    def _by_class(self) -> np.ndarray:
        """Numbers of the training images, sorted by class."""
        return np.argsort(self.train.labels, kind="stable")

    def _usable_images(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Tries all images of a fixed set, once: numbers and labels of those that can be used."""
        if name not in self._usable:
            records = self.fixed_sets[name]
            _log.info("%s: reading %d images to find damaged ones", records.location, len(records))
            load = lambda _, data: self._decode(data, draft=True)
            self._usable[name] = usable_images(records, load, self.on_bad_image, self.threads)
        return self._usable[name]

    def _decode(self, data: bytes, draft: bool = False):
        return decode_image(data, self.channels, self.exif_orientation, draft)

    def _evaluation_image(self, data: bytes) -> np.ndarray:
        return self._centre(self._decode(data))

    def _centre(self, image) -> np.ndarray:
        return crop_image(image, self.image_size, crops.evaluation(image.height, image.width, self.crop))

    def _crop(self, image, position: int) -> np.ndarray:
        if self.augment.crop != "resized":
            return self._centre(image)
        uniform = np.random.default_rng((self.seed, position)).random((crops.TRIES, 4))
        box = crops.random_resized(uniform, image.height, image.width, self.augment.min_area)
        return crop_image(image, self.image_size, box)

    def _report_bad_image(self, index: int, error: BadImage) -> None:
        text = f"{self.train.name(index)} ({error})"
        if self.on_bad_image == "error":
            raise UserError(
                f"{self.train.location}: {text} cannot be used; repair or remove it, or set "
                "on_bad_image to 'skip'"
            ) from error
        if index not in self._bad_images:
            self._bad_images.add(index)
            _log.warning("%s: left out %s; %d so far", self.train.location, text, len(self._bad_images))


def _read_by_threads(
    load: Callable[[int], tuple[np.ndarray, int]], batch: int, rows: range, start: int, threads: int
) -> Iterator[ArrayTables]:
    """Yields the rows of each batch. load: position in the training sequence -> image, label."""
    pending: deque = deque()
    pool = ThreadPoolExecutor(threads)
    tasks = [rows[first : first + _IMAGES_PER_TASK] for first in range(0, len(rows), _IMAGES_PER_TASK)]
    read = lambda step, task: [load(step * batch + row) for row in task]
    try:
        for step in itertools.count(start):
            pending.append([pool.submit(read, step, task) for task in tasks])
            if len(pending) > _BATCHES_AHEAD:
                yield _stack([image for future in pending.popleft() for image in future.result()])
    finally:
        pool.shutdown(cancel_futures=True)  # batches after the last step are not needed


def _read_by_grain(
    load: Callable[[int], tuple[np.ndarray, int]], batch: int, rows: range, start: int, threads: int
) -> Iterator[ArrayTables]:
    """Does the same as `_read_by_threads` with Grain."""
    import grain

    count = len(rows)
    numbers = grain.MapDataset.range(start * count, 2**62)
    images = numbers.map(lambda number: load(number // count * batch + rows[number % count]))
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=_BATCHES_AHEAD * count)
    yield from images.to_iter_dataset(options).batch(count, batch_fn=_stack)


def _stack(images: Sequence[tuple[np.ndarray, int]]) -> ArrayTables:
    pixels, labels = zip(*images)
    return ArrayTables(np.stack(pixels), np.asarray(labels, np.int32))


@functools.lru_cache(maxsize=3)
def _epoch_order(seed: int, epoch: int, count: int, balance: ClassBalance | None) -> np.ndarray:
    """Returns the order of the training images in one epoch; with a balance, of images sorted by class."""
    rng = np.random.default_rng((seed, epoch))
    return rng.permutation(count) if balance is None else balance.sample_on_host(rng, count)
