"""A workdir belongs to one configuration, and its files are written atomically."""

import errno
import functools
import json

import pytest

from prance_jax.config import io
from prance_jax.config.experiment import Config
from prance_jax.core.errors import UserError
from prance_jax.core.files import disk_errors, write_atomic
from prance_jax.training.workdir import Workdir

CONFIG = {"seeds": [0, 1], "selector": {"updates": 100}}


def test_claim_makes_the_folder_and_the_same_config_continues(tmp_path):
    workdir = Workdir(tmp_path / "runs" / "a")
    assert workdir.claim(CONFIG, "python -m prance_jax train") is False
    written = json.loads(workdir.config_file.read_text())
    assert written == {"command": "python -m prance_jax train", "config": CONFIG}
    assert Workdir(workdir.path).claim(CONFIG, "another command line") is True
    assert workdir.record() == CONFIG
    assert [path.name for path in workdir.path.iterdir()] == ["config.json"]


def test_another_config_is_refused_with_the_differing_keys(tmp_path):
    Workdir(tmp_path).claim({**CONFIG, "selector": {"updates": 200}}, "")
    before = (tmp_path / "config.json").read_bytes()
    with pytest.raises(UserError) as caught:
        Workdir(tmp_path).claim(CONFIG, "")
    text = str(caught.value)
    assert "selector.updates: 100 here, 200 in the workdir" in text and "another --workdir" in text
    assert "seeds" not in text and "\n" not in text
    assert (tmp_path / "config.json").read_bytes() == before


def test_seeds_may_be_appended(tmp_path):
    workdir = Workdir(tmp_path)
    workdir.claim(CONFIG, "two")
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
    assert workdir.claim(before, "") is False
    complete = functools.partial(io.complete_config, Config)
    assert workdir.claim(now, "", complete) is True
    with pytest.raises(UserError, match="meta.steps"):
        workdir.claim({**now, "meta": {**now["meta"], "steps": 7}}, "", complete)
    assert io.complete_config(Config, {"gone": 1}) == {"gone": 1}
