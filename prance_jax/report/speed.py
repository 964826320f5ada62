"""Throughput, measured fairly: every program in turn, again and again, medians."""

from __future__ import annotations

import time
from typing import Callable, Mapping

import jax
import numpy as np


def throughput(programs: Mapping[str, Callable[[], object]], images: int, seconds: float) -> dict[str, float]:
    """Images per second of each program, the median over interleaved repeats.

    programs: calls that run `images` images each and return device arrays. seconds: time for all of them together,
    compilation not counted; each runs at least three times.
    """
    for program in programs.values():
        jax.block_until_ready(program())
    taken: dict[str, list[float]] = {name: [] for name in programs}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or min(map(len, taken.values())) < 3:
        for name, program in programs.items():
            start = time.perf_counter()
            jax.block_until_ready(program())
            taken[name].append(time.perf_counter() - start)
    return {name: images / float(np.median(times)) for name, times in taken.items()}
