"""TensorBoard files have the lines of the metrics file, also after a resume, and never stop a run."""

import struct
import sys

import pytest

from prance_jax.training.metrics import MetricsWriter, read_metrics
from prance_jax.training.tensorboard import TensorBoardWriter


def scalars(folder):
    """(step, name, value) of a stage's event files: length, checksum, Event, checksum, and so on."""
    Event = pytest.importorskip("tensorboardX.proto.event_pb2").Event
    values = []
    for file in sorted(folder.glob("events.out.tfevents.*")):
        data = file.read_bytes()
        while data:
            (size,) = struct.unpack("<Q", data[:8])
            event = Event.FromString(data[12 : 12 + size])
            values += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
            data = data[16 + size :]
    return values


def test_a_resumed_run_shows_every_step_once(tmp_path):
    notes = []
    first = MetricsWriter(tmp_path / "metrics.jsonl", TensorBoardWriter(tmp_path / "events", notes.append))
    for step in (20, 40, 60):
        first.write("seed0/meta", step, step / 10, {"loss": 1 / 4, "accuracy": step})
    # Killed without a close; the checkpoint was at 40.
    again = MetricsWriter(tmp_path / "metrics.jsonl", TensorBoardWriter(tmp_path / "events", notes.append))
    again.rewind("seed0/meta", 40)
    for step in (60, 80):
        again.write("seed0/meta", step, step / 10, {"loss": 1 / 2, "accuracy": float("nan")})
    again.rewind("seed0/prune/selector", 0)
    again.write("seed0/prune/selector", 20, 1.0, {"reward": 3})
    again.close()
    assert scalars(tmp_path / "events/seed0/meta") == [
        (20, "loss", 0.25),
        (20, "accuracy", 20),
        (40, "loss", 0.25),
        (40, "accuracy", 40),
        (60, "loss", 0.5),
        (80, "loss", 0.5),
    ]
    assert scalars(tmp_path / "events/seed0/prune/selector") == [(20, "reward", 3)]
    assert [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl")] == [
        20,
        40,
        60,
        80,
        20,
    ] and not notes


def test_without_tensorboardx_one_line_is_printed(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX.event_file_writer", None)
    notes = []
    writer = MetricsWriter(tmp_path / "metrics.jsonl", TensorBoardWriter(tmp_path / "events", notes.append))
    for step in (1, 2):
        writer.write("meta", step, 0.1, {"loss": 1})
    assert len(notes) == 1 and "pip install tensorboardX" in notes[0]
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 2


def test_a_folder_that_cannot_be_written_gives_one_line(tmp_path):
    (tmp_path / "events").write_text("a file")
    notes = []
    writer = MetricsWriter(tmp_path / "metrics.jsonl", TensorBoardWriter(tmp_path / "events", notes.append))
    for step in (1, 2):
        writer.write("meta", step, 0.1, {"loss": 1})
    assert len(notes) <= 1 and len(read_metrics(tmp_path / "metrics.jsonl")) == 2
