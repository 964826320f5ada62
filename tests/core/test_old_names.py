"""Names of the release before still work, and warn."""

import importlib
import json
from pathlib import Path

import pytest
from serving.test_model import make

import prance_jax
from prance_jax.core import old_names

TABLE = json.loads(Path(old_names.__file__).with_name("old_names.json").read_text())
MOVED = [(module, entry["module"]) for module, entry in TABLE.items() if "module" in entry]
NAMES = [
    (module, name, new) for module, entry in TABLE.items() for name, new in entry.get("names", {}).items()
]


@pytest.mark.parametrize("old, new", MOVED, ids=[old for old, _ in MOVED])
def test_modules_that_moved(old, new):
    """Every public name of the new module that is defined there is found by the old module's path."""
    module, target = (
        importlib.import_module(f"prance_jax.{old}"),
        importlib.import_module(f"prance_jax.{new}"),
    )
    name = (
        next(
            name
            for name, value in vars(target).items()
            if not name.startswith("_")
            and getattr(value, "__module__", "") == target.__name__
            and name not in TABLE[old].get("names", {})
        )
        if old not in ("data.image_folder", "channels.gates")
        else None
    )
    if name:
        with pytest.warns(FutureWarning, match=f"prance_jax.{old}.{name} is now prance_jax.{new}.{name}"):
            assert getattr(module, name) is getattr(target, name)


@pytest.mark.parametrize("module, name, new", NAMES, ids=[f"{module}.{name}" for module, name, _ in NAMES])
def test_names_that_changed(module, name, new):
    path, _, current = new.partition(":")
    with pytest.warns(FutureWarning, match=f"{module}.{name} is now prance_jax.{path}.{current}"):
        value = getattr(importlib.import_module(f"prance_jax.{module}"), name)
    assert value is getattr(importlib.import_module(f"prance_jax.{path}"), current)


def test_the_old_way_to_write_it():
    """The library example of the last release's README."""
    with pytest.warns(FutureWarning, match="prance_jax.spec.ModelSpec is now"):
        from prance_jax.spec import ModelSpec
    with pytest.warns(FutureWarning, match="prance_jax.space.SPACES is now"):
        from prance_jax.space import SPACES
    with pytest.warns(FutureWarning, match="prance_jax.models.walk.init is now"):
        from prance_jax.models import walk

        walk.init  # noqa: B018
    assert ModelSpec is prance_jax.ModelSpec and SPACES is prance_jax.SPACES


def test_a_name_that_never_was():
    with pytest.raises(ImportError):
        from prance_jax.space import Nothing  # noqa: F401
    with pytest.raises(ImportError):
        import prance_jax.nowhere  # noqa: F401


def test_fields_and_methods_of_a_served_model():
    model = make(cost_weights=(0.01, 0.5))
    for name, current in (
        ("plans", "buckets"),
        ("rule", "policy"),
        ("ladder", "budget_table"),
        ("over", "shard"),
        ("contract", "certified_budget"),
    ):
        with pytest.warns(FutureWarning, match=f"AdaptiveModel.{name} is now .{current}"):
            assert getattr(model, name) == getattr(model, current)
