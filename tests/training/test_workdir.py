"""A workdir belongs to one configuration, and its files are written atomically."""

import errno
import fcntl
import functools
import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from prance_jax.config import io
from prance_jax.config.experiment import Config
from prance_jax.core.errors import UserError, WriteError
from prance_jax.core.files import atomic_file, disk_errors, read_json, try_write, write_atomic
from prance_jax.training.workdir import MAY_CHANGE, Workdir
from prance_jax.zoo.formats.files import save_weights

CONFIG = {"seeds": [0, 1], "selector": {"updates": 100}}


def train(workdir, config=CONFIG, **options):
    """A workdir with a checkpoint."""
    assert workdir.claim(config, "", **options) is False
    (workdir.checkpoints / "seed0/dense/3").mkdir(parents=True)


def test_claim_makes_the_folder_and_the_same_config_continues(tmp_path):
    workdir = Workdir(tmp_path / "runs" / "a")
    assert workdir.claim(CONFIG, "python -m prance_jax train") is False
    written = json.loads(workdir.config_file.read_text())
    assert written == {"command": "python -m prance_jax train", "config": CONFIG}
    assert Workdir(workdir.path).claim(CONFIG, "another command line") is True
    assert workdir.record() == CONFIG
    assert [path.name for path in workdir.path.iterdir()] == ["config.json"]


def test_another_config_is_refused_with_the_differing_keys(tmp_path):
    train(Workdir(tmp_path), {**CONFIG, "selector": {"updates": 200}})
    before = (tmp_path / "config.json").read_bytes()
    with pytest.raises(UserError) as caught:
        Workdir(tmp_path).claim(CONFIG, "")
    text = str(caught.value)
    assert "selector.updates: 100 here, 200 in the workdir" in text and "another --workdir" in text
    assert "seeds" not in text and "\n" not in text
    assert (tmp_path / "config.json").read_bytes() == before


def test_seeds_may_be_appended(tmp_path):
    workdir = Workdir(tmp_path)
    train(workdir, CONFIG)
    more = {**CONFIG, "seeds": (0, 1, 5)}
    assert workdir.claim(more, "three") is True
    assert json.loads(workdir.config_file.read_text()) == {
        "command": "three",
        "config": {**CONFIG, "seeds": [0, 1, 5]},
    }
    for seeds in ([0], [0, 1], [1, 0, 5, 6], [0, 2, 5, 6]):
        with pytest.raises(UserError, match=r"seeds: .* here, \[0, 1, 5\] in the workdir"):
            workdir.claim({**CONFIG, "seeds": seeds}, "")
    with pytest.raises(UserError, match="selector.updates"):
        workdir.claim({"seeds": [0, 1, 5, 6], "selector": {"updates": 7}}, "")
    assert workdir.record()["seeds"] == [0, 1, 5]


@pytest.mark.parametrize("text, words", [("{", "not readable JSON"), ("[1]", "not written by this program")])
def test_a_broken_config_file_is_named(tmp_path, text, words):
    train(Workdir(tmp_path))
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=words):
        Workdir(tmp_path).claim(CONFIG, "")


def test_a_file_in_the_way_is_named(tmp_path):
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file", tmp_path / "file" / "under"):
        with pytest.raises(UserError, match="is a file"):
            Workdir(path).claim(CONFIG, "")
    with pytest.raises(UserError, match="holds no config.json"):
        Workdir(tmp_path).record()


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    write_atomic(path, "old")

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("prance_jax.core.files.os.fsync", full)
    with pytest.raises(UserError, match="a.txt; the last checkpoint is intact"):
        write_atomic(path, "new")
    assert path.read_text() == "old" and len(list(tmp_path.iterdir())) == 1


def test_only_a_full_disk_is_translated():
    full = ValueError("RESOURCE_EXHAUSTED: writing: No space left on device")
    for error in (full, OSError(errno.EDQUOT, "quota")):
        with pytest.raises(UserError, match="could not write the thing"), disk_errors("the thing"):
            raise error
    with pytest.raises(KeyError), disk_errors("the thing"):
        raise KeyError("other")


def test_a_config_of_an_earlier_version_gets_the_defaults_of_new_fields(tmp_path):
    """An update that adds fields continues a run; another value of a stored field does not."""
    now = io.to_dict(Config())
    before = {key: value for key, value in now.items() if key != "compare"}
    before["meta"] = {key: value for key, value in now["meta"].items() if key != "init_from"}
    workdir = Workdir(tmp_path)
    train(workdir, before)
    complete = functools.partial(io.complete_config, Config)
    assert workdir.claim(now, "", complete) is True
    with pytest.raises(UserError, match="meta.steps"):
        workdir.claim({**now, "meta": {**now["meta"], "steps": 7}}, "", complete)
    assert io.complete_config(Config, {"gone": 1}) == {"gone": 1}


HOLD = """
import sys, time
from prance_jax.training.workdir import Workdir
with Workdir(sys.argv[1]).lock():
    print("locked", flush=True)
    time.sleep(100)
"""


def test_a_lock_names_its_holder_and_ends_with_the_process(tmp_path, caplog):
    part = tmp_path / ".results.json.999999999.part"
    part.write_text("half")
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout.readline() == "locked\n"
        assert not part.exists()
        with pytest.raises(UserError, match=rf"in use by process {holder.pid} on \S+ since 2\d+-"):
            with Workdir(tmp_path).lock():
                pass
        holder.send_signal(signal.SIGKILL)
    with Workdir(tmp_path).lock():
        assert f"process {os.getpid()} on" in (tmp_path / ".lock").read_text()
    with Workdir(tmp_path).lock():  # released
        pass
    assert caplog.text == ""


def test_a_file_system_without_locks_gives_a_warning(tmp_path, monkeypatch, caplog):
    def no_locks(*arguments):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with Workdir(tmp_path).lock():
        assert Workdir(tmp_path).claim(CONFIG, "") is False
    assert "cannot be locked (No locks available); start no second run" in caplog.text


def test_only_the_first_process_of_a_run_locks(tmp_path, monkeypatch):
    monkeypatch.setattr("prance_jax.training.workdir.is_main_process", lambda: False)
    with Workdir(tmp_path).lock(), Workdir(tmp_path).lock():
        assert not (tmp_path / ".lock").exists()
    monkeypatch.setattr("prance_jax.training.workdir.agree_on_stop", lambda *requests: (False, True))
    with pytest.raises(UserError, match="in use by another run"), Workdir(tmp_path).lock():
        pass


def test_a_folder_that_trained_nothing_takes_another_config(tmp_path):
    """A mistake in a command must not make the folder refuse the mended command."""
    workdir = Workdir(tmp_path)
    workdir.claim({**CONFIG, "selector": {"updates": -1}}, "wrong")
    (tmp_path / "metrics.jsonl").write_text("")
    workdir.checkpoints.mkdir()
    assert workdir.claim(CONFIG, "mended") is True
    assert workdir.record() == CONFIG
    (tmp_path / "config.json").write_text("")
    workdir.claim(CONFIG, "torn")
    assert workdir.record() == CONFIG


def test_where_data_lie_and_how_fast_it_runs_may_change(tmp_path):
    first = io.to_dict(Config())
    train(Workdir(tmp_path), first)
    data = {**first["data"], "folder": {**first["data"]["folder"], "path": "/moved"}}
    now = {**first, "data": data, "mesh": {"data": 2, "fsdp": 1}, "checkpoint_seconds": 7.0}
    assert Workdir(tmp_path).claim(now, "") is True
    assert Workdir(tmp_path).record() == now
    images = {**data["images"], "size": 99}
    with pytest.raises(UserError, match=r"\(data.images.size: 99 here, 224 in the workdir\)"):
        Workdir(tmp_path).claim({**now, "data": {**data, "images": images}}, "")


def test_every_key_that_may_change_exists():
    config = io.to_dict(Config())
    for key in MAY_CHANGE:
        value = config
        for part in key.split("."):
            value = value[part]


@pytest.mark.parametrize(
    "classes, words",
    [
        (("ant", "bee", "cow"), r"new: cow; 3 here, 2 in the workdir"),
        (("ant",), "missing: bee; 1 here"),
        (("ant", "wasp"), "new: wasp; missing: bee"),
        (("bee", "ant"), "another order"),
    ],
)
def test_other_classes_are_refused(tmp_path, classes, words):
    train(Workdir(tmp_path), classes=("ant", "bee"))
    assert Workdir(tmp_path).claim(CONFIG, "", classes=("ant", "bee")) is True
    with pytest.raises(UserError, match=words):
        Workdir(tmp_path).claim(CONFIG, "", classes=classes)
    with pytest.raises(UserError, match=words):
        Workdir(tmp_path).check_classes(classes)


def test_a_workdir_of_an_earlier_version_gets_its_classes(tmp_path):
    train(Workdir(tmp_path))
    Workdir(tmp_path).check_classes(("ant",))
    Workdir(tmp_path).claim(CONFIG, "", classes=("ant",))
    with pytest.raises(UserError, match="missing: ant"):
        Workdir(tmp_path).check_classes(("bee",))


@pytest.mark.parametrize("path", ["gs://bucket/run", "s3://b/r", "hdfs:/r"])
def test_an_address_is_no_folder(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="is not a local path; mount the bucket"):
        Workdir(path)
    with pytest.raises(UserError, match="is not a local path"):
        write_atomic(path, "")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "name, reason",
    [
        ("a" * 300, "File name too long"),
        ("file/under/b", "Not a directory"),
        ("new/" + "b" * 300, "too long"),
    ],
)
def test_a_path_that_cannot_be_written_is_one_line_and_leaves_nothing(tmp_path, name, reason):
    (tmp_path / "file").write_text("x")
    with pytest.raises(WriteError, match=reason):
        write_atomic(tmp_path / name, "text")
    with pytest.raises(UserError, match=f"{reason}|is a file"):
        Workdir(tmp_path / name).claim(CONFIG, "")
    with pytest.raises(UserError, match="null byte"):
        write_atomic(f"{tmp_path}/a\0b", "text")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.ENOSPC])
def test_what_cannot_be_written_is_a_warning_where_it_can_be_made_anew(tmp_path, monkeypatch, caplog, code):
    def refuse(*arguments):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("prance_jax.core.files.os.replace", refuse)
    assert try_write(tmp_path / "new/side.json", "1") is False
    assert f"could not write {tmp_path}/new/side.json" in caplog.text
    assert not list(tmp_path.iterdir())


def test_files_have_the_mode_of_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        write_atomic(tmp_path / "text", "")
        with atomic_file(tmp_path / "bytes") as partial:
            partial.write_bytes(b"")
        save_weights(tmp_path / "w.safetensors", {"w": np.ones(2)}, {})
        with Workdir(tmp_path).lock():
            pass
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o640}


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[]", b'{"other": 1}'])
def test_a_damaged_side_file_is_a_warning(tmp_path, caplog, content):
    path = tmp_path / "side.json"
    assert read_json(path, lambda record: record["value"]) is None and caplog.text == ""
    path.write_bytes(content)
    assert read_json(path, lambda record: record["value"]) is None
    assert caplog.text.count(f"{path} is damaged") == 1
    path.write_text('{"value": 3}')
    assert read_json(path, lambda record: record["value"]) == 3


def test_a_running_process_keeps_its_partial_file(tmp_path):
    (tmp_path / f".a.json.{os.getppid()}.part").write_text("")
    (tmp_path / f".b.json.{os.getpid()}.part").write_text("")  # of an earlier process of this number
    with Workdir(tmp_path).lock():
        pass
    assert sorted(path.name for path in tmp_path.glob("*.part")) == [f".a.json.{os.getppid()}.part"]


def test_a_disk_that_is_full_at_the_start_leaves_no_folder(tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("prance_jax.core.files.os.replace", full)
    workdir = Workdir(tmp_path / "runs/new")
    with workdir.lock(), pytest.raises(WriteError, match="the disk is full"):
        workdir.claim(CONFIG, "")
    assert not list(tmp_path.iterdir())
