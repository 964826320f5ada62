"""Reading configs: types, overrides, and one clear line for every mistake."""

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Literal

import pytest

from prance_jax.config import io
from prance_jax.core.errors import UserError


@dataclass(frozen=True)
class Model:
    depth: int = 12
    drop: float = 0.1
    widths: tuple[int, ...] = (32, 64)
    pairs: tuple[tuple[int, float], ...] = ()
    first: int | None = None
    mode: Literal["prune", "merge"] = "prune"

    def __post_init__(self):
        if self.depth < 1:
            raise ValueError(f"depth must be at least 1, got {self.depth}")


@dataclass(frozen=True)
class Config:
    name: str
    fast: bool = False
    seeds: tuple[int, ...] = (0,)
    model: Model = field(default_factory=Model)
    teacher: Model | None = None


@pytest.fixture
def file(tmp_path):
    def write(body):
        path = tmp_path / "experiment.py"
        path.write_text("from ml_collections import ConfigDict\n\ndef get_config():\n" + body)
        return path

    return write


GOOD = """
    model = dict(depth=6, drop=0, pairs=[[1, 2], (3, .5)])
    return ConfigDict(dict(name='a', seeds=[1, 2], model=model))
"""


def message(path, *overrides):
    with pytest.raises(UserError) as caught:
        io.load_config(path, Config, list(overrides))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_file_becomes_a_frozen_hashable_typed_schema(file):
    config = io.load_config(file(GOOD), Config)
    assert config == Config("a", seeds=(1, 2), model=Model(6, 0.0, pairs=((1, 2.0), (3, 0.5))))
    assert isinstance(config.model.drop, float)
    hash(config)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.name = "b"


@pytest.mark.parametrize(
    "override, expected",
    [
        ("--config.model.depth=8", lambda c: c.model.depth == 8),
        ("--config.seeds=0,1,2", lambda c: c.seeds == (0, 1, 2)),
        ("--config.seeds=(0,1,2)", lambda c: c.seeds == (0, 1, 2)),
        ("--config.seeds=7", lambda c: c.seeds == (7,)),
        ("--config.seeds=", lambda c: c.seeds == ()),
        ("--config.seeds=()", lambda c: c.seeds == ()),
        ("--config.model.pairs=(1,0.5),(2,1)", lambda c: c.model.pairs == ((1, 0.5), (2, 1.0))),
        ("--config.model.pairs=((1,0.5),)", lambda c: c.model.pairs == ((1, 0.5),)),
        ("--config.model.drop=1e-3", lambda c: c.model.drop == 1e-3),
        ("--config.model.first=4", lambda c: c.model.first == 4),
        ("--config.model.first=None", lambda c: c.model.first is None),
        ("--config.model.mode=merge", lambda c: c.model.mode == "merge"),
        ("--config.fast=true", lambda c: c.fast is True),
        ("--config.name=12", lambda c: c.name == "12"),
        ("--config.name='a=b, c'", lambda c: c.name == "a=b, c"),
        ("--config.teacher.depth=3", lambda c: c.teacher == Model(3)),
    ],
)
def test_overrides_are_typed_by_the_schema(file, override, expected):
    config = io.load_config(file(GOOD), Config, [override])
    assert expected(config)
    assert config.model.pairs if "pairs" in override else config.model.pairs == ((1, 2.0), (3, 0.5))


def test_the_last_override_of_a_key_wins(file):
    assert io.load_config(file(GOOD), Config, ["--config.name=b", "--config.name=c"]).name == "c"


@pytest.mark.parametrize(
    "override, words",
    [
        ("--config.model.dept=8", ("config.model.dept;", "config.model.depth")),
        ("--config.modell.depth=8", ("config.modell;", "config.model")),
        ("--config.depth=8", ("config.depth;", "config.model.depth")),
        ("--config.model.depth=eight", ("config.model.depth", "'eight'", "int")),
        ("--config.model.depth=8.5", ("config.model.depth", "'8.5'", "int")),
        ("--config.model.depth=0", ("config.model", "at least 1")),
        ("--config.model.pairs=(1,2,3)", ("config.model.pairs", "tuple[int, float]")),
        ("--config.model.mode=mrege", ("config.model.mode", "'prune', 'merge'")),
        ("--config.fast=1", ("config.fast", "bool")),
        ("--config.model=3", ("config.model is a section", "config.model.depth")),
        ("--config.seeds.first=3", ("config.seeds is a single value",)),
        ("--config.seeds=0,(1", ("config.seeds", "(1", "int")),
        ("--config.name", ("--config.section.key=value",)),
        ("--name=3", ("--config.section.key=value",)),
    ],
)
def test_a_wrong_override_says_what_would_be_right(file, override, words):
    text = message(file(GOOD), override)
    assert all(word in text for word in words), text


@pytest.mark.parametrize(
    "body, words",
    [
        ("    return ConfigDict(dict(name='a', sedes=(1,)))\n", ("config.sedes", "config.seeds")),
        ("    return dict(name='a', model=dict(widhts=(1,)))\n", ("config.model.widhts", "widths")),
        ("    return dict(name='a', model=dict(depth=2.0))\n", ("config.model.depth", "2.0", "int")),
        ("    return dict(name='a', model=dict(depth=True))\n", ("config.model.depth", "True", "int")),
        ("    return ConfigDict(dict(name='a', seeds=(1, 'x')))\n", ("config.seeds[1]", "'x'", "int")),
        ("    return ConfigDict(dict(name='a', model=3))\n", ("config.model", "3", "section")),
        ("    return ConfigDict(dict(name=None))\n", ("config.name", "None", "str")),
        ("    return ConfigDict(dict(seeds=(1,)))\n", ("config.name is missing", "str")),
        ("    return 3\n", ("get_config() should return a ConfigDict", "int")),
        ("    return 1 / 0\n", ("line 4", "ZeroDivisionError")),
        ("    return (\n", ("SyntaxError", "line")),
        ("    c = ConfigDict()\n    return c.missing\n", ("AttributeError", "line 5")),
    ],
)
def test_a_wrong_file_says_what_would_be_right(file, body, words):
    text = message(file(body))
    assert all(word in text for word in words), text


def test_no_file_and_no_get_config(tmp_path):
    assert "absent.py does not exist" in message(tmp_path / "absent.py")
    (tmp_path / "empty.py").write_text("x = 1\n")
    assert "defines no get_config()" in message(tmp_path / "empty.py")


def test_a_mistake_in_the_file_is_not_hidden_by_an_override(file):
    body = "    return dict(name='a', model=dict(depth='six'))\n"
    assert "'six'" in message(file(body), "--config.model.depth=6")


def test_json_and_back_is_the_identity(file):
    config = io.load_config(file(GOOD), Config, ["--config.teacher.depth=3"])
    assert io.from_dict(Config, json.loads(json.dumps(io.to_dict(config)))) == config


def test_differences_name_keys_and_both_values():
    here = Config("a", seeds=(0, 1))
    there = {**io.to_dict(Config("a", model=Model(8))), "old": 1}
    assert io.differences(here, there) == [
        "seeds: [0, 1] here, [0] in the workdir",
        "model.depth: 12 here, 8 in the workdir",
        "old: absent here, 1 in the workdir",
    ]
    assert io.differences(here, json.loads(json.dumps(io.to_dict(here)))) == []
