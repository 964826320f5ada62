"""The one training loop, for every stage: steps, metrics, checkpoints, and a guard against non-finite values.

All randomness of a stage is derived from its step number, so a run that is killed at any moment and started
again ends bit-identical to one that was not: the state comes from the newest checkpoint, the metrics file is
cut back to that step, and the half-filled logging window travels with the checkpoint.
"""

import math
import signal
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prance_jax.core.errors import UserError
from prance_jax.training import tree_leaves
from prance_jax.training.checkpoint import Checkpoints
from prance_jax.training.interrupts import _agreed, _stop_requests
from prance_jax.training.metrics import MetricsWriter, Progress

PyTree = Any
_RUN_AHEAD = 4  # steps that may be queued on the device; more gains nothing and delays a stop
_SAVE_SHARE = 0.05  # of the time at most goes into timed checkpoints, however large the state


@dataclass(frozen=True)
class Stage:
    """One stage of training.

    Attributes:
      name: the name in the metrics and the folder of its checkpoints, for example ``seed0/meta``.
      steps: how many steps it has.
      init: makes the fresh state; called for its structure, too, when a checkpoint is restored.
      step: ``(state, step) -> (state, metrics)``, jitted; `step` is an int32 scalar counted from 0 and the
        only source of randomness; the metrics are scalars. The state may be donated.
      headline: the metrics shown in the progress line; by default the first three.
    """

    name: str
    steps: int
    init: Callable[[], PyTree]
    step: Callable[[PyTree, jax.Array], tuple[PyTree, dict[str, jax.Array]]]
    headline: tuple[str, ...] = ()


def run_stage(
    stage: Stage,
    checkpoints_dir: str | Path,
    metrics: MetricsWriter,
    *,
    checkpoint_seconds: float = 20.0,
    checkpoint_every: int | None = None,
    log_every: int = 20,
    progress: Progress,
) -> PyTree:
    """Runs a stage to its end, from its newest checkpoint if it has one, and returns the final state.

    A metrics line every `log_every` steps holds the mean of each metric over the steps since the line before.

    Args:
      checkpoints_dir: the folder of all stages' checkpoints.
      checkpoint_seconds: time between checkpoints; stretched when saving takes long, and on several hosts up to the
        next metrics line.
      checkpoint_every: steps between checkpoints, in addition.

    Raises:
      UserError: a metric or the state became non-finite (the last good checkpoint stays), the checkpoints do
        not fit the stage, or the disk is full.
      KeyboardInterrupt, SystemExit: Ctrl-C or SIGTERM (exit status 143), after a checkpoint was saved.
    """
    checkpoints = Checkpoints(Path(checkpoints_dir) / stage.name)
    state = jax.tree.map(_strong, stage.init())
    run = _Run(stage, checkpoints, metrics)
    example, state = _abstract(state), (state if checkpoints.latest() is None else None)
    restored = checkpoints.restore_newest(example)
    if restored is not None:
        state = restored.tree
        run.resume(restored.step, restored.note)
    if run.done > stage.steps:
        raise UserError(
            f"stage {stage.name} has a checkpoint at step {run.done}, beyond its {stage.steps} steps; "
            "choose another --workdir or raise the steps"
        )
    metrics.rewind(stage.name, run.done)
    if run.done == stage.steps and restored is not None:
        return state

    progress.start(stage.name, stage.steps, run.done)
    try:
        with _stop_requests() as stops:
            while run.done < stage.steps:
                state, values = stage.step(state, jnp.int32(run.done))
                run.take(values)
                logs = run.done % log_every == 0 or run.done == stage.steps
                progress.update(run.done, _headline(stage, run.log()) if logs else None)
                due = checkpoint_every is not None and run.done % checkpoint_every == 0
                pause = max(checkpoint_seconds, run.save_seconds / _SAVE_SHARE)
                late, stop = _agreed(logs, run.unsaved_seconds() > pause, bool(stops))
                if due or late or stop or run.done == stage.steps:
                    run.save(state)
                if stop and run.done < stage.steps:
                    raise stops[0] if stops else SystemExit(128 + signal.SIGTERM)
            if not stage.steps:
                run.save(state)
            if stops:
                raise stops[0]
    finally:
        progress.stop()
    return state


class _Run:
    """The bookkeeping of one call: what is done, what was measured, what is saved."""

    def __init__(self, stage: Stage, checkpoints: Checkpoints, metrics: MetricsWriter):
        self.done = 0
        self.save_seconds = 0.0
        self._stage, self._checkpoints, self._metrics = stage, checkpoints, metrics
        self._pending: deque[dict[str, jax.Array]] = deque()  # still on the device, the newest steps
        self._window: list[dict[str, float]] = []  # since the last metrics line
        self._saved: int | None = None
        self._seconds_before = 0.0
        self._began = self._last_save = time.monotonic()

    def resume(self, step: int, note: dict[str, Any]) -> None:
        self.done = self._saved = step
        self._seconds_before = note["seconds"]
        self._window = list(note["window"])

    def take(self, values: dict[str, jax.Array]) -> None:
        """Counts a step and keeps its metrics, on the device as long as possible."""
        self._pending.append(values)
        self.done += 1
        if len(self._pending) > _RUN_AHEAD:
            jax.block_until_ready(self._pending[-1 - _RUN_AHEAD])

    def log(self) -> dict[str, float]:
        """Writes the metrics line of the window and empties it."""
        self._fetch()
        means = {name: float(np.mean([values[name] for values in self._window])) for name in self._window[-1]}
        self._metrics.write(self._stage.name, self.done, self._seconds(), means)
        self._window = []
        return means

    def save(self, state: PyTree) -> None:
        """Saves a checkpoint, unless something in it is not finite."""
        self._fetch()
        for path, leaf in tree_leaves.leaves_by_path(state).items():
            if not _finite(leaf):
                self._refuse(f"the state ({path})", self._saved or 0, self.done)
        if self._saved == self.done:
            return
        before = time.monotonic()
        self._checkpoints.save(self.done, state, {"seconds": self._seconds(), "window": self._window})
        self._last_save = time.monotonic()
        self._saved, self.save_seconds = self.done, self._last_save - before

    def unsaved_seconds(self) -> float:
        return time.monotonic() - self._last_save

    def _seconds(self) -> float:
        return self._seconds_before + time.monotonic() - self._began

    def _fetch(self) -> None:
        first = self.done - len(self._pending)
        for offset, values in enumerate(jax.device_get(list(self._pending))):
            numbers = {name: float(value) for name, value in values.items()}
            for name, value in numbers.items():
                if not math.isfinite(value):
                    self._refuse(f"metric {name}", first + offset, first + offset + 1)
            self._window.append(numbers)
        self._pending.clear()

    def _refuse(self, what: str, after: int, until: int) -> None:
        good = f"is at step {self._saved}" if self._saved is not None else "does not exist yet"
        raise UserError(
            f"stage {self._stage.name}: {what} became non-finite between steps {after} and {until}; the last "
            f"good checkpoint {good}; try a lower learning rate, or float32 instead of a 16-bit type"
        )


def _headline(stage: Stage, means: dict[str, float]) -> dict[str, float]:
    names = stage.headline or tuple(means)[:3]
    return {name: means[name] for name in names if name in means}


def _abstract(state: PyTree) -> PyTree:
    """Shapes, dtypes and places only, so that the fresh state's memory is free for the restored one."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding),
        state,
    )


def _strong(leaf: Any) -> jax.Array:
    """Without the weak type of a Python scalar: restored arrays have none, and it changes results."""
    if tree_leaves.is_key(leaf):
        return leaf
    array = jnp.asarray(leaf)
    return jax.lax.convert_element_type(array, array.dtype) if array.weak_type else array


def _finite(leaf: Any) -> bool:
    if tree_leaves.is_key(leaf) or not jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
        return True
    if getattr(leaf, "is_fully_addressable", True):
        return bool(np.isfinite(np.asarray(leaf)).all())
    return all(bool(np.isfinite(np.asarray(shard.data)).all()) for shard in leaf.addressable_shards)
