"""Fair measurement of speed: programs run in turn, many times, and the median counts."""

from __future__ import annotations

import time
from typing import Callable, Mapping

import jax
import numpy as np

Programs = Mapping[str, Callable[[], object]]


def throughput(programs: Programs, images: int, seconds: float) -> dict[str, float]:
    """Measures images per second of each program: the median over interleaved repeats.

    Args:
      programs: name -> call that runs a batch and returns device arrays.
      images: images that each call runs.
      seconds: time for all programs together, without compilation; each runs at least three times.

    Returns:
      Name -> images per second.
    """
    durations = time_interleaved(programs, repeats=3, seconds=seconds)
    return {name: images / float(np.median(times)) for name, times in durations.items()}


def time_interleaved(programs: Programs, repeats: int, seconds: float = 0.0) -> dict[str, list[float]]:
    """Measures the seconds of every call, programs in turn, after one warm-up call of each.

    Args:
      programs: name -> call that returns device arrays.
      repeats: measured calls of each program, at least.
      seconds: total time to measure for, at least.

    Returns:
      Name -> seconds of each measured call.
    """
    for program in programs.values():
        jax.block_until_ready(program())
    durations: dict[str, list[float]] = {name: [] for name in programs}
    deadline = time.perf_counter() + seconds
    while min(map(len, durations.values())) < repeats or time.perf_counter() < deadline:
        for name, program in programs.items():
            start = time.perf_counter()
            jax.block_until_ready(program())
            durations[name].append(time.perf_counter() - start)
    return durations
