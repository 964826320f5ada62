"""The training loop of every stage: steps, metrics, checkpoints, and a check for non-finite values.

All randomness of a stage is derived from its step number. So a run that is killed at any moment and
started again ends bit-identical to one that was not. The state comes from the newest checkpoint, the
metrics file is cut back to that step, and the checkpoint holds the metrics since the last line.
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
from prance_jax.training.interrupts import agree_on_stop, collect_stop_signals
from prance_jax.training.metrics import MetricsWriter
from prance_jax.training.progress import Progress

PyTree = Any
_RUN_AHEAD = 4  # steps queued on the device, at most; more would not be faster and would delay a stop
_SAVE_SHARE = 0.05  # share of the time spent on timed checkpoints, at most


@dataclass(frozen=True)
class Stage:
    """One stage of training.

    Attributes:
      name: name in the metrics and folder of the checkpoints, for example ``seed0/meta``.
      steps: number of steps.
      init: () -> initial state; also called for its structure when a checkpoint is restored.
      step: (state, step) -> (state, metrics), jitted. The step number is an int32 scalar, from 0, and
        the only source of randomness. Metrics are scalars. The state may be donated.
      headline: names of the metrics in the progress line; the first three by default.
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
    """Runs a stage to its end, from its newest checkpoint if it has one.

    Args:
      stage: the stage.
      checkpoints_dir: folder of the checkpoints of all stages.
      metrics: writer of the metrics lines.
      checkpoint_seconds: seconds between checkpoints. Longer if saving takes long, and on several
        hosts up to the next metrics line.
      checkpoint_every: steps between checkpoints, in addition.
      log_every: steps between metrics lines. A line has the mean of each metric over the steps since
        the line before.
      progress: display of the progress.

    Returns:
      The final state.

    Raises:
      UserError: a metric or the state became non-finite (the last good checkpoint stays), the
        checkpoints do not fit the stage, or the disk is full.
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
        with collect_stop_signals() as stops:
            while run.done < stage.steps:
                state, values = stage.step(state, jnp.int32(run.done))
                run.take(values)
                logs = run.done % log_every == 0 or run.done == stage.steps
                progress.update(run.done, _headline(stage, run.log()) if logs else None)
                due = checkpoint_every is not None and run.done % checkpoint_every == 0
                pause = max(checkpoint_seconds, run.save_seconds / _SAVE_SHARE)
                late = run.unsaved_seconds() > pause
                save, stop = agree_on_stop(logs, late, bool(stops))
                if due or save or stop or run.done == stage.steps:
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


def restore_stage(stage: Stage, checkpoints_dir: str | Path) -> PyTree:
    """Reads the state of a trained stage; it trains nothing and writes nothing.

    Where the newest checkpoint is damaged, it is that of the one before, with a warning.

    Args:
      stage: the stage.
      checkpoints_dir: folder of the checkpoints of all stages.

    Raises:
      UserError: there is no checkpoint, none can be read, or they do not fit the stage.
    """
    checkpoints = Checkpoints(Path(checkpoints_dir) / stage.name, read_only=True)
    return checkpoints.restore(_abstract(jax.tree.map(_strong, stage.init())))


class _Run:
    """The state of one call: finished steps, metrics since the last line, last checkpoint."""

    def __init__(self, stage: Stage, checkpoints: Checkpoints, metrics: MetricsWriter):
        self.done = 0
        self.save_seconds = 0.0
        self._stage, self._checkpoints, self._metrics = stage, checkpoints, metrics
        self._pending: deque[dict[str, jax.Array]] = deque()  # metrics still on the device
        self._window: list[dict[str, float]] = []  # since the last metrics line
        self._saved: int | None = None
        self._seconds_before = 0.0
        self._began = self._last_save = time.monotonic()

    def resume(self, step: int, note: dict[str, Any]) -> None:
        self.done = self._saved = step
        self._seconds_before = note["seconds"]
        self._window = list(note["window"])

    def take(self, values: dict[str, jax.Array]) -> None:
        """Counts a step and stores its metrics, on the device as long as possible."""
        self._pending.append(values)
        self.done += 1
        if len(self._pending) > _RUN_AHEAD:
            jax.block_until_ready(self._pending[-1 - _RUN_AHEAD])

    def log(self) -> dict[str, float]:
        """Writes a metrics line with the means over the window, and empties the window."""
        self._fetch()
        means = {name: float(np.mean([values[name] for values in self._window])) for name in self._window[-1]}
        self._metrics.write(self._stage.name, self.done, self._seconds(), means)
        self._window = []
        return means

    def save(self, state: PyTree) -> None:
        """Saves a checkpoint; raises UserError if a value in it is not finite."""
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
    """Returns shapes, dtypes and shardings, so that the memory of the initial state is freed."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding),
        state,
    )


def _strong(leaf: Any) -> jax.Array:
    """Removes the weak type of a Python scalar: restored arrays have none, and it changes results."""
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
