"""What a run tells while it runs: a JSON-lines file for programs, one line of progress for people."""

import json
import math
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from prance_jax.core.files import disk_errors, write_atomic
from prance_jax.core.sharding import is_main_process
from prance_jax.training.tensorboard import Events


class MetricsWriter:
    """Appends lines ``{"stage": ..., "step": ..., "seconds": ..., <name>: <float>, ...}`` to one file.

    A line is on its way to the disk when `write` returns, so that killing the process loses none of them. Of several hosts
    the first one writes.

    Args:
      path: the file; its folder is made, and what it holds already is kept.
      events: gets every line as well.
    """

    def __init__(self, path: str | Path, events: Events | None = None):
        self.path = Path(path)
        self._events = events
        self._file: IO[str] | None = None

    def write(self, stage: str, step: int, seconds: float, values: Mapping[str, float]) -> None:
        """Writes one line. Raises UserError on a full disk."""
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
        """Drops the stage's lines after `step` and a torn last line, for a run that continues from `step`."""
        self.close()
        if not is_main_process() or not self.path.exists():
            return
        text = self.path.read_text(encoding="utf-8", errors="replace")
        kept = [line for line in text.splitlines() if _stays(line, stage, step)]
        rewound = "".join(line + "\n" for line in kept)
        if rewound != text:
            write_atomic(self.path, rewound)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
        if self._events is not None:
            self._events.close()


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """The lines of a metrics file as dicts, in order; a torn last line is left out."""
    lines = Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    return [record for record in map(_record, lines) if record is not None]


def _record(line: str) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and "stage" in record and "step" in record else None


def _stays(line: str, stage: str, step: int) -> bool:
    record = _record(line)
    return record is not None and (record["stage"] != stage or record["step"] <= step)


def _json_number(value: float) -> float | None:
    value = float(value)
    return value if math.isfinite(value) else None  # JSON has no NaN


class Progress:
    """How far the current stage is: a bar on a terminal, a plain line now and then in a log.

    Args:
      quiet: say nothing.
      stream: where to; standard error by default.
      every_seconds: the time between plain lines where the stream is not a terminal.
    """

    def __init__(self, quiet: bool = False, stream: IO[str] | None = None, every_seconds: float = 10.0):
        self._stream = stream if stream is not None else sys.stderr
        self._quiet = quiet
        self._every = every_seconds
        self._terminal = bool(getattr(self._stream, "isatty", lambda: False)())
        self._bar: Any = None

    def start(self, name: str, steps: int, done: int = 0) -> None:
        """Opens a stage of `steps` steps of which `done` are there already."""
        self._name, self._steps, self._first, self._done = name, steps, done, done
        self._began = self._spoke = time.monotonic()
        self._headline = ""
        if self._terminal and not self._quiet:
            from tqdm import tqdm

            self._bar = tqdm(
                desc=name,
                total=steps,
                initial=done,
                file=self._stream,
                dynamic_ncols=True,
                unit="step",
                leave=True,
            )

    def update(self, step: int, values: Mapping[str, float] | None = None) -> None:
        """`step` steps are finished; `values` are the metrics worth showing (the last ones stay)."""
        if self._quiet:
            return
        if values:
            self._headline = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
        if self._bar is not None:
            self._bar.set_postfix_str(self._headline, refresh=False)
            self._bar.update(step - self._done)
        self._done = step
        if self._bar is None and time.monotonic() - self._spoke >= self._every:
            self._say()

    def stop(self) -> None:
        """Closes the stage."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        elif not self._quiet and self._done > self._first:
            self._say()

    def note(self, text: str) -> None:
        """One line that stays, between or above the bars."""
        if self._quiet:
            return
        if self._bar is not None:
            self._bar.write(text, file=self._stream)
        else:
            print(text, file=self._stream, flush=True)

    def _say(self) -> None:
        self._spoke = time.monotonic()
        elapsed = max(self._spoke - self._began, 1e-9)
        rate = (self._done - self._first) / elapsed
        left = (self._steps - self._done) / rate if rate else math.inf
        wait = f"{_clock(left)} left" if self._done < self._steps else f"done in {_clock(elapsed)}"
        line = f"{self._name}  {self._done}/{self._steps}  {rate:.3g} steps/s  {wait}  {self._headline}"
        print(line.rstrip(), file=self._stream, flush=True)


def _clock(seconds: float) -> str:
    if not math.isfinite(seconds):
        return "?"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
