"""TensorBoard event files of the metrics, if tensorboardX is installed."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

Lines = Sequence[Mapping[str, Any]]


class TensorBoardWriter:
    """Writes the scalars of one stage at a time to `folder`/STAGE, a run of that name in TensorBoard.

    The event file of a stage is written again from the metrics file when the first line is added. So a
    run that was stopped and continued shows every step once. A failure here never stops a run; it
    gives one line of explanation.

    Args:
      folder: folder of all stages.
      report: prints one line for people.
    """

    def __init__(self, folder: str | Path, report: Callable[[str], None]):
        self._folder, self._report = Path(folder), report
        self._stage: str | None = None
        self._writer: Any = None
        self._works = True

    def add(self, record: Mapping[str, Any], read_lines: Callable[[], Lines]) -> None:
        """Adds a line of the metrics file.

        Args:
          record: the line.
          read_lines: reads all lines of the file, this one included.
        """
        if not self._works:
            return
        try:
            if record["stage"] == self._stage:
                self._write(record, time.time())
            else:
                lines = [line for line in read_lines() if line["stage"] == record["stage"]]
                self._begin(record["stage"], lines)
            self._writer.flush()
        except ImportError:
            self._works = False
            self._report(
                "no TensorBoard files: pip install tensorboardX to get them; metrics.jsonl has everything"
            )
        except OSError as error:
            self._works = False
            self._report(f"no more TensorBoard files ({error}); metrics.jsonl goes on")

    def close(self) -> None:
        """Closes the file of the stage; the next line begins a new one."""
        if self._writer is not None:
            self._writer.close()
        self._stage = self._writer = None

    def _begin(self, stage: str, lines: Lines) -> None:
        # The asynchronous writer of tensorboardX would wait for ever once the disk is full.
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
