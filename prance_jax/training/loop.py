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

from prance_jax.config.stages import ValidationConfig
from prance_jax.core.errors import UserError
from prance_jax.evaluation.validation import BestScore, mean_score
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
      validate: (state) -> validation metrics, numbers of which higher is better; None where the stage
        has no validation. It must not change the state.
    """

    name: str
    steps: int
    init: Callable[[], PyTree]
    step: Callable[[PyTree, jax.Array], tuple[PyTree, dict[str, jax.Array]]]
    headline: tuple[str, ...] = ()
    validate: Callable[[PyTree], dict[str, float]] | None = None


def run_stage(
    stage: Stage,
    checkpoints_dir: str | Path,
    metrics: MetricsWriter,
    *,
    checkpoint_seconds: float = 20.0,
    checkpoint_every: int | None = None,
    log_every: int = 20,
    validation: ValidationConfig = ValidationConfig(),
    progress: Progress,
) -> PyTree:
    """Runs a stage to its end, from its newest checkpoint if it has one.

    A checkpoint is saved at every validation that is better than all before.

    Args:
      stage: the stage.
      checkpoints_dir: folder of the checkpoints of all stages.
      metrics: writer of the metrics lines.
      checkpoint_seconds: seconds between checkpoints. Longer if saving takes long, and on several
        hosts up to the next metrics line.
      checkpoint_every: steps between checkpoints, in addition.
      log_every: steps between metrics lines. A line has the mean of each metric over the steps since
        the line before; every validation writes one as well.
      validation: when the stage is validated, when it ends early, and what it returns.
      progress: display of the progress.

    Returns:
      The final state, or that of the best validation (`ValidationConfig.use_checkpoint`).

    Raises:
      UserError: a metric or the state became non-finite (the last good checkpoint stays), the
        checkpoints do not fit the stage, or the disk is full.
      KeyboardInterrupt, SystemExit: Ctrl-C or SIGTERM (exit status 143), after a checkpoint was saved.
    """
    checkpoints = Checkpoints(Path(checkpoints_dir) / stage.name)
    state = jax.tree.map(tree_leaves.strong_leaf, stage.init())
    run = _Run(stage, checkpoints, metrics, validation)
    example, state = tree_leaves.abstract_tree(state), (state if checkpoints.latest() is None else None)
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
    if run.is_finished and restored is not None:
        return run.result(state, example)

    progress.start(stage.name, stage.steps, run.done)
    try:
        with collect_stop_signals() as stops:
            while not run.is_finished:
                state, values = stage.step(state, jnp.int32(run.done))
                run.take(values)
                scores = run.validate(state) if run.validates else {}
                logs = run.done % log_every == 0 or run.is_finished or bool(scores)
                progress.update(run.done, _headline(stage, run.log(scores), scores) if logs else None)
                due = checkpoint_every is not None and run.done % checkpoint_every == 0
                pause = max(checkpoint_seconds, run.save_seconds / _SAVE_SHARE)
                late = run.unsaved_seconds() > pause
                save, stop = agree_on_stop(logs, late, bool(stops))
                if due or save or stop or run.is_finished or run.best.step == run.done:
                    run.save(state)
                if stop and not run.is_finished:
                    raise stops[0] if stops else SystemExit(128 + signal.SIGTERM)
            if not stage.steps:
                run.save(state)
            if stops:
                raise stops[0]
    finally:
        progress.stop()
    if run.done < stage.steps:
        text = f"{stage.name}: ended at step {run.done}, no better validation since step {run.best.step}"
        progress.note(text)
    return run.result(state, example)


def restore_stage(
    stage: Stage, checkpoints_dir: str | Path, validation: ValidationConfig = ValidationConfig()
) -> PyTree:
    """Reads the state of a trained stage; it trains nothing and writes nothing.

    Where the newest checkpoint is damaged, it is that of the one before, with a warning.

    Args:
      stage: the stage.
      checkpoints_dir: folder of the checkpoints of all stages.
      validation: the settings that the stage was trained with.

    Raises:
      UserError: the stage is not finished, no checkpoint can be read, or they do not fit the stage.
    """
    checkpoints = Checkpoints(Path(checkpoints_dir) / stage.name, read_only=True)
    run = _Run(stage, checkpoints, None, validation)
    example = tree_leaves.abstract_tree(jax.tree.map(tree_leaves.strong_leaf, stage.init()))
    restored = checkpoints.restore_newest(example)
    if restored is not None:
        run.resume(restored.step, restored.note)
    if restored is None or not (run.is_finished or checkpoints.latest() == stage.steps):
        raise UserError(
            f"{checkpoints_dir}: stage {stage.name} is at step {run.done} of {stage.steps}; "
            "run the train command on this workdir first"
        )
    return run.result(restored.tree, example)


class _Run:
    """The state of one call: finished steps, metrics since the last line, last and best checkpoint."""

    def __init__(
        self,
        stage: Stage,
        checkpoints: Checkpoints,
        metrics: MetricsWriter | None,
        validation: ValidationConfig,
    ):
        self.done, self.best = 0, BestScore()
        self._validation = validation
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
        self.best = BestScore(*note.get("best", ()))

    @property
    def is_finished(self) -> bool:
        patience = self._validation.patience
        return self.done >= self._stage.steps or (patience is not None and self.best.num_worse >= patience)

    @property
    def validates(self) -> bool:
        """Whether the stage is validated after the last step."""
        every = self._validation.every if self._stage.validate is not None else None
        return every is not None and (self.done % every == 0 or self.done == self._stage.steps)

    def validate(self, state: PyTree) -> dict[str, float]:
        scores = self._stage.validate(state)
        self.best = self.best.update(self.done, mean_score(scores))
        return scores

    def result(self, state: PyTree, example: PyTree) -> PyTree:
        """Returns the state that the stage hands on, given its last one."""
        if self._validation.use_checkpoint == "last" or self.best.step in (None, self.done):
            return state
        return self._checkpoints.restore(example, self.best.step)

    def take(self, values: dict[str, jax.Array]) -> None:
        """Counts a step and stores its metrics, on the device as long as possible."""
        self._pending.append(values)
        self.done += 1
        if len(self._pending) > _RUN_AHEAD:
            jax.block_until_ready(self._pending[-1 - _RUN_AHEAD])

    def log(self, scores: dict[str, float]) -> dict[str, float]:
        """Writes a metrics line with the means over the window and validation scores; empties the window."""
        self._fetch()
        means = {name: float(np.mean([values[name] for values in self._window])) for name in self._window[-1]}
        self._metrics.write(self._stage.name, self.done, self._seconds(), {**means, **scores})
        self._window = []
        return means

    def save(self, state: PyTree) -> None:
        """Saves a checkpoint; raises UserError if a value in it is not finite."""
        self._fetch()
        for path, leaf in tree_leaves.leaves_by_path(state).items():
            if not tree_leaves.is_finite(leaf):
                self._refuse(f"the state ({path})", self._saved or 0, self.done)
        if self._saved == self.done:
            return
        before = time.monotonic()
        note = {"seconds": self._seconds(), "window": self._window, "best": self.best}
        self._checkpoints.save(self.done, state, note, self.best.step)
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


def _headline(stage: Stage, means: dict[str, float], scores: dict[str, float]) -> dict[str, float]:
    names = stage.headline or tuple(means)[:3]
    return {**{name: means[name] for name in names if name in means}, **scores}
