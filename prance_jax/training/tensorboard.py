"""TensorBoard's event files beside the metrics, where tensorboardX is installed."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

Lines = Sequence[Mapping[str, Any]]


class Events:
    """Scalars of one stage at a time in `folder`/STAGE, which TensorBoard shows as a run of that name.

    The metrics file is the truth: a stage's event file is made anew from its lines when the first line is added, so that a run
    that was stopped and cut back shows every step once. Nothing here ever stops a run: the reason is told, and that was all.

    Args:
      folder: of all stages.
      tell: takes one line for people.
    """

    def __init__(self, folder: str | Path, tell: Callable[[str], None]):
        self._folder, self._tell = Path(folder), tell
        self._stage: str | None = None
        self._writer: Any = None
        self._works = True

    def add(self, record: Mapping[str, Any], before: Callable[[], Lines]) -> None:
        """Adds a line of the metrics file; before: reads all lines of the file, this one included."""
        if not self._works:
            return
        try:
            if record["stage"] == self._stage:
                self._write(record, time.time())
            else:
                own = [line for line in before() if line["stage"] == record["stage"]]
                self._begin(record["stage"], own)
            self._writer.flush()
        except ImportError:
            self._works = False
            self._tell(
                "no TensorBoard files: pip install tensorboardX to get them; metrics.jsonl has everything"
            )
        except OSError as error:
            self._works = False
            self._tell(f"no more TensorBoard files ({error}); metrics.jsonl goes on")

    def close(self) -> None:
        """Ends the stage; the next line begins a new file."""
        if self._writer is not None:
            self._writer.close()
        self._stage = self._writer = None

    def _begin(self, stage: str, lines: Lines) -> None:
        # Its asynchronous writer would wait for ever once the disk is full.
        from tensorboardX.event_file_writer import EventsWriter

        self.close()
        folder = self._folder / stage
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob("events.out.tfevents.*"):
            old.unlink()
        self._writer = EventsWriter(str(folder / "events"))
        now, last = time.time(), lines[-1]["seconds"]
        for line in lines:
            self._write(line, now - last + line["seconds"])
        self._stage = stage

    def _write(self, record: Mapping[str, Any], when: float) -> None:
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.summary_pb2 import Summary

        values = [
            Summary.Value(tag=name, simple_value=value)
            for name, value in record.items()
            if name not in ("stage", "step", "seconds") and value is not None
        ]
        self._writer.write_event(Event(wall_time=when, step=record["step"], summary=Summary(value=values)))
