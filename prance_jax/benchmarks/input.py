"""How fast images arrive: the stream of a config against the decoding library alone, and a draw from memory."""

from __future__ import annotations

import dataclasses
import itertools
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

from prance_jax.config.experiment import Config
from prance_jax.core.timing import time_interleaved
from prance_jax.data import crops
from prance_jax.data.images.decode import crop_image, decode_image
from prance_jax.data.images.stream import Stream
from prance_jax.data.load import load_source


def measure_input(config: Config, batch: int, batches: int = 60, repeats: int = 7) -> dict[str, Any]:
    """Images per second, medians over interleaved repeats, of the training pictures of a config.

    stream: `Stream.batches`, as training reads them (order, crops, batches). library: Pillow opening, decoding and resizing the
    same number of files of the same set, on one thread a core. memory: batches drawn from memory and augmented on the
    device, where the config keeps its images there.
    """
    data = config.data
    streamed = dataclasses.replace(data, images=dataclasses.replace(data.images, in_memory=False))
    source = load_source(streamed)
    assert isinstance(source, Stream)
    count = batch * batches
    steps = itertools.count(0, batches)

    def stream():
        # One of its own for every call: what is read ahead must not be read in somebody else's time.
        running = source.batches(batch, next(steps))
        found = [own.labels.sum() for own in itertools.islice(running, batches)]
        running.close()
        return found

    starts = itertools.count(0, count)

    def library():
        start = next(starts)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return list(pool.map(one, (number % len(source.train) for number in range(start, start + count))))

    def one(number: int) -> int:
        image = decode_image(source.train.get(number)[0])
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
    taken = time_interleaved(programs, repeats)
    speeds = {name: count / float(np.median(times)) for name, times in taken.items()}
    return {
        "images_per_s": speeds,
        "stream_over_library": speeds["stream"] / speeds["library"],
        "batch": batch,
    }
