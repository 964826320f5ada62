"""The speed of reading images: a config's stream, the decoding library alone, and memory."""

from __future__ import annotations

import dataclasses
import itertools
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

from prance_jax.config.experiment import Config
from prance_jax.data import crops
from prance_jax.data.images.decode import crop_image, decode_image
from prance_jax.data.images.stream import Stream
from prance_jax.data.load import load_source
from prance_jax.evaluation.timing import time_interleaved


def measure_input(config: Config, batch: int, batches: int = 60, repeats: int = 7) -> dict[str, Any]:
    """Measures images per second of the training images of a config, in three ways.

    Args:
      config: with images on disk.
      batch: images per batch.
      batches: batches per measurement.
      repeats: interleaved repeats, of which medians are taken.

    Returns:
      `images_per_s` of 'stream' (as training reads them: order, crops, batches), 'library' (Pillow
      opens, decodes and resizes as many files, on one thread per core) and 'memory' (drawn from
      memory and augmented on the device, if the config keeps images there); the ratio of the first
      two; the batch size.
    """
    data = config.data
    streamed = dataclasses.replace(data, images=dataclasses.replace(data.images, in_memory=False))
    source = load_source(streamed)
    assert isinstance(source, Stream)
    count = batch * batches
    steps = itertools.count(0, batches)

    def stream():
        # A new stream for every call: images read ahead must not be read while another program is timed.
        running = source.batches(batch, next(steps))
        sums = [tables.labels.sum() for tables in itertools.islice(running, batches)]
        running.close()
        return sums

    starts = itertools.count(0, count)

    def library():
        start = next(starts)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return list(
                pool.map(read_pixel, (index % len(source.train) for index in range(start, start + count)))
            )

    def read_pixel(index: int) -> int:
        image = decode_image(source.train.get(index)[0])
        box = crops.evaluation(image.height, image.width, data.images.crop)
        return crop_image(image, data.images.size, box)[0, 0, 0]

    programs = {"stream": stream, "library": library}
    if data.images.in_memory:
        memory = load_source(data)
        draw = jax.jit(memory.sample, static_argnums=2)
        keys = itertools.count()
        programs["memory"] = lambda: [
            draw(memory.tables, jax.random.key(next(keys)), batch) for _ in range(batches)
        ]
    seconds = time_interleaved(programs, repeats)
    speeds = {name: count / float(np.median(times)) for name, times in seconds.items()}
    return {
        "images_per_s": speeds,
        "stream_over_library": speeds["stream"] / speeds["library"],
        "batch": batch,
    }
