"""The metrics of a run: a file of JSON lines."""

import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from prance_jax.core.files import disk_errors, write_atomic
from prance_jax.core.sharding import is_main_process
from prance_jax.training.tensorboard import TensorBoardWriter

_log = logging.getLogger(__name__)


class MetricsWriter:
    """Appends lines ``{"stage": ..., "step": ..., "seconds": ..., <name>: <float>, ...}`` to a file.

    A line is flushed when `write` returns, so a killed process loses none. Of several hosts only the
    first one writes.

    Args:
      path: the file; its folder is created, and lines that it has already are kept.
      events: TensorBoard files that receive every line as well.
    """

    def __init__(self, path: str | Path, events: TensorBoardWriter | None = None):
        self.path = Path(path)
        self._events = events
        self._file: IO[str] | None = None

    def write(self, stage: str, step: int, seconds: float, values: Mapping[str, float]) -> None:
        """Writes one line.

        Args:
          stage: name of the stage.
          step: number of finished steps.
          seconds: time of the stage so far, seconds.
          values: metrics by name; a value that is not finite is written as null.

        Raises:
          UserError: the disk is full.
        """
        if not is_main_process():
            return
        numbers = {name: _json_number(value) for name, value in values.items()}
        record = {"stage": stage, "step": step, "seconds": round(seconds, 3), **numbers}
        with disk_errors(self.path):
            if self._file is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._file = open(self.path, "a", encoding="utf-8")
            self._file.write(json.dumps(record) + "\n")
            self._file.flush()
        if self._events is not None:
            self._events.add(record, lambda: read_metrics(self.path))

    def rewind(self, stage: str, step: int) -> None:
        """Removes the lines of a stage after a step, and an incomplete last line.

        Args:
          stage: name of the stage.
          step: step from which the run continues.
        """
        self.close()
        if not is_main_process() or not self.path.exists():
            return
        text = self.path.read_text(encoding="utf-8", errors="replace")
        kept = [line for line in text.splitlines() if _is_kept(line, stage, step)]
        torn = sum(_record(line) is None for line in text.splitlines())
        if torn:
            _log.warning("%s: %d incomplete lines are removed", self.path, torn)
        kept_text = "".join(line + "\n" for line in kept)
        if kept_text != text:
            write_atomic(self.path, kept_text)

    def close(self) -> None:
        """Closes the file and the TensorBoard files; the next line opens them again."""
        if self._file is not None:
            self._file.close()
            self._file = None
        if self._events is not None:
            self._events.close()


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """Reads the lines of a metrics file as dicts, in order, without an incomplete last line."""
    lines = Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    return [record for record in map(_record, lines) if record is not None]


def _record(line: str) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    has_keys = isinstance(record, dict) and "stage" in record and isinstance(record.get("step"), int)
    return record if has_keys else None


def _is_kept(line: str, stage: str, step: int) -> bool:
    record = _record(line)
    return record is not None and (record["stage"] != stage or record["step"] <= step)


def _json_number(value: float) -> float | None:
    value = float(value)
    return value if math.isfinite(value) else None  # JSON has no NaN
