"""Names of the release before keep working for one release, each with a warning that says the new name.

`old_names.json` maps an old module to its new one, and names in it that have changed to "module:name". Old modules that are
gone are made up on import; modules that are still there get a module `__getattr__` for their old names.
"""

from __future__ import annotations

import functools
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import json
import sys
import types
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

_PACKAGE = "prance_jax"


@functools.lru_cache(maxsize=None)
def _table() -> dict[str, dict[str, Any]]:
    return json.loads(Path(__file__).with_name("old_names.json").read_text(encoding="utf-8"))


def old_attribute(module: str, name: str) -> Any:
    """Finds what an old name stands for and warns.

    Args:
      module: old module, without the package.
      name: old name in it.

    Raises:
      AttributeError: neither an old nor a new name.
    """
    entry = _table().get(module, {})
    where, _, current = (
        entry.get("names", {}).get(name, f"{entry.get('module') or module}:{name}").partition(":")
    )
    if name.startswith("__") or (where == module and current == name):
        raise AttributeError(f"module '{_PACKAGE}.{module}' has no attribute {name!r}")
    try:
        value = getattr(importlib.import_module(f"{_PACKAGE}.{where}"), current)
    except ImportError:
        raise AttributeError(f"module '{_PACKAGE}.{module}' has no attribute {name!r}") from None
    message = f"{_PACKAGE}.{module}.{name} is now {_PACKAGE}.{where}.{current}"
    warnings.warn(message, FutureWarning, stacklevel=3)
    return value


def renamed(name: str, new_name: str) -> property:
    """Makes a property for the old name of a field or method.

    Args:
      name: the old name.
      new_name: the name that it has now.
    """

    def get(instance: Any) -> Any:
        warnings.warn(f"{type(instance).__name__}.{name} is now .{new_name}", FutureWarning, stacklevel=2)
        return getattr(instance, new_name)

    return property(get, doc=f"Old name of `{new_name}`.")


def _getter(module: str) -> Callable[[str], Any]:
    return lambda name: old_attribute(module, name)


class _OldModule(importlib.abc.Loader):
    """Loads a module that is gone: empty, with a `__getattr__` for its names."""

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> None:
        return None

    def exec_module(self, module: types.ModuleType) -> None:
        module.__path__ = []  # it may have been a package
        module.__getattr__ = _getter(module.__name__.removeprefix(f"{_PACKAGE}."))


class _Finder(importlib.abc.MetaPathFinder):
    """Finds old modules, and adds old names to modules that are still there."""

    def find_spec(
        self, fullname: str, path: Any, target: Any = None
    ) -> importlib.machinery.ModuleSpec | None:
        package, _, module = fullname.partition(".")
        if package != _PACKAGE or module not in _table():
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is None or spec.loader is None:
            return importlib.util.spec_from_loader(fullname, _OldModule(), is_package=True)
        run = spec.loader.exec_module

        def exec_module(loaded: types.ModuleType) -> None:
            run(loaded)
            loaded.__dict__.setdefault("__getattr__", _getter(module))

        spec.loader.exec_module = exec_module
        return spec


def install() -> None:
    """Makes old names importable; called once by the package."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
