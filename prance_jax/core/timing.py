"""Speed, measured fairly: every program in turn, again and again, medians."""

from __future__ import annotations

import time
from typing import Callable, Mapping

import jax
import numpy as np

Programs = Mapping[str, Callable[[], object]]


def throughput(programs: Programs, images: int, seconds: float) -> dict[str, float]:
    """Images per second of each program, the median over interleaved repeats.

    programs: calls that run `images` images each and return device arrays. seconds: time for all of them together,
    compilation not counted; each runs at least three times.
    """
    taken = time_interleaved(programs, repeats=3, seconds=seconds)
    return {name: images / float(np.median(times)) for name, times in taken.items()}


def time_interleaved(programs: Programs, repeats: int, seconds: float = 0.0) -> dict[str, list[float]]:
    """Seconds of every call, after one that is not counted; at least `repeats` of each, and for `seconds` in all."""
    for program in programs.values():
        jax.block_until_ready(program())
    taken: dict[str, list[float]] = {name: [] for name in programs}
    end = time.perf_counter() + seconds
    while min(map(len, taken.values())) < repeats or time.perf_counter() < end:
        for name, program in programs.items():
            start = time.perf_counter()
            jax.block_until_ready(program())
            taken[name].append(time.perf_counter() - start)
    return taken
