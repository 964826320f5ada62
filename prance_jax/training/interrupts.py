"""Ctrl-C and SIGTERM during training, on one host or several."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np


def _agreed(meeting: bool, late: bool, stop: bool) -> tuple[bool, bool]:
    """Whether to save and whether to stop. Several hosts must do both at the same step, but their clocks and signals
    differ: at a `meeting` all do what one of them asks for, between two meetings none does."""
    if jax.process_count() == 1:
        return late, stop
    if not meeting:
        return False, False
    from jax.experimental import multihost_utils

    asked = multihost_utils.process_allgather(np.array([late, stop]))
    return tuple(bool(value) for value in asked.any(axis=0))


@contextmanager
def _stop_requests() -> Iterator[list[BaseException]]:
    """Collects Ctrl-C and SIGTERM instead of dying from them, so that a step is never cut in half.

    A second Ctrl-C stops at once. Outside the main thread, where signals cannot be caught, it collects none.
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
