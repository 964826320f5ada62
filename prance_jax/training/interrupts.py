"""Ctrl-C and SIGTERM during training, on one host or several."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np


def agree_on_stop(exchange: bool, save: bool, stop: bool) -> tuple[bool, bool]:
    """Decides for all hosts whether to save a checkpoint and whether to stop.

    Several hosts must do both at the same step, but their clocks and signals differ. So they act only
    at steps at which they exchange their requests; one host's request is enough.

    Args:
      exchange: whether the hosts exchange their requests at this step; the same on every host.
      save: whether this host requests a checkpoint.
      stop: whether this host requests a stop.

    Returns:
      Whether to save, whether to stop.
    """
    if jax.process_count() == 1:
        return save, stop
    if not exchange:
        return False, False
    from jax.experimental import multihost_utils

    requests = multihost_utils.process_allgather(np.array([save, stop]))
    return tuple(bool(value) for value in requests.any(axis=0))


@contextmanager
def collect_stop_signals() -> Iterator[list[BaseException]]:
    """Collects Ctrl-C and SIGTERM while a step runs, so that a step is never cut in half.

    A second Ctrl-C stops at once. Outside the main thread signals cannot be caught, so none are
    collected.

    Yields:
      The exceptions to raise, in the order of the signals; empty while there was none.
    """
    stops: list[BaseException] = []

    def interrupt(number: int, frame: Any) -> None:
        if stops:
            raise KeyboardInterrupt
        stops.append(KeyboardInterrupt())

    def terminate(number: int, frame: Any) -> None:
        stops.append(SystemExit(128 + signal.SIGTERM))

    if threading.current_thread() is not threading.main_thread():
        yield stops
        return
    previous = {
        signal.SIGINT: signal.signal(signal.SIGINT, interrupt),
        signal.SIGTERM: signal.signal(signal.SIGTERM, terminate),
    }
    try:
        yield stops
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
