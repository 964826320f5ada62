"""Reads configurations: a Python file and command-line overrides become frozen, typed dataclasses.

A config file defines ``get_config() -> ml_collections.ConfigDict``. All other code sees only
dataclasses: the values are checked against a schema of nested frozen dataclasses, with the types and
ranges that their fields declare (`core.fields`). Every mistake is one ``UserError`` that names the
full key.
"""

import dataclasses
import difflib
import runpy
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from prance_jax.config.renames import rename_key, rename_keys
from prance_jax.config.values import parse
from prance_jax.core import fields
from prance_jax.core.errors import UserError

Schema = TypeVar("Schema")
_ROOT = "config"


def load_config(path: str | Path, schema: type[Schema], overrides: Sequence[str] = ()) -> Schema:
    """Reads a config file, applies overrides and checks everything against the schema.

    Args:
      path: a Python file with ``get_config()``.
      schema: a frozen dataclass; fields missing in the file keep their defaults.
      overrides: ``--config.meta.steps=8``, ``--config.seeds=0,1,2``; the last one of a key wins.

    Returns:
      An instance of the schema. Old names of keys are read with a `FutureWarning`.

    Raises:
      UserError: missing or failing file, unknown key (with the nearest right name), wrong type or
        value.
    """
    # The file is checked by itself first: overrides start from complete sections and hide no mistake.
    config = from_dict(schema, _run_file(Path(path)), warn=True)
    if not overrides:
        return config
    raw = to_dict(config)
    for override in overrides:
        _apply(override, schema, raw)
    return from_dict(schema, raw)


def to_dict(instance: Any) -> Any:
    """Returns the JSON-able mirror of a config: dataclasses as dicts, tuples as lists."""
    if dataclasses.is_dataclass(instance):
        return {f.name: to_dict(getattr(instance, f.name)) for f in dataclasses.fields(instance)}
    if isinstance(instance, Mapping):
        return {str(key): to_dict(value) for key, value in instance.items()}
    if isinstance(instance, (tuple, list)):
        return [to_dict(value) for value in instance]
    return instance


def from_dict(schema: type[Schema], mapping: Mapping[str, Any], *, warn: bool = False) -> Schema:
    """Builds a config from nested mappings: the inverse of `to_dict`.

    Args:
      schema: a frozen dataclass.
      mapping: values by key; lists become tuples, and ints floats, where the schema has them.
      warn: whether an old name of a key gives a `FutureWarning`; stored configs are read without.

    Returns:
      An instance of the schema.

    Raises:
      UserError: unknown or missing key, a key given by its old and its current name, wrong type, or
        a value that the schema itself refuses.
    """
    return _section(schema, rename_keys(schema, mapping, _ROOT, warn), _ROOT, schema)


def differences(here: Any, there: Any, where: str = "the workdir") -> list[str]:
    """Lists the keys whose values differ between two configs.

    Args:
      here: a config, or what `to_dict` made of it.
      there: the config to compare with, or what `to_dict` made of it.
      where: what the second config is called in the lines.

    Returns:
      Lines like ``selector.updates: 100 here, 200 in the workdir``, in the order of the keys.
    """
    values_here, values_there = dict(_leaves(to_dict(here))), dict(_leaves(to_dict(there)))
    lines = []
    for key in [*values_here, *(key for key in values_there if key not in values_here)]:
        value_here = repr(values_here[key]) if key in values_here else "absent"
        value_there = repr(values_there[key]) if key in values_there else "absent"
        if value_here != value_there:
            lines.append(f"{key}: {value_here} here, {value_there} in {where}")
    return lines


def _leaves(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(tree, Mapping) and tree:
        for key, value in tree.items():
            yield from _leaves(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, tree


def _run_file(path: Path) -> dict[str, Any]:
    """Runs the config file and returns plain nested dicts."""
    from ml_collections import ConfigDict

    if not path.is_file():
        raise UserError(f"config file {path} does not exist; it should be a Python file with get_config()")
    try:
        module = runpy.run_path(str(path))
        if not callable(module.get("get_config")):
            raise UserError(f"config file {path} defines no get_config(); it should return a ConfigDict")
        config = module["get_config"]()
        if isinstance(config, ConfigDict):
            return config.to_dict()
    except UserError:
        raise
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == str(path)]
        line = getattr(error, "lineno", None) or (lines[-1] if lines else None)
        position = f", line {line}" if line else ""
        raise UserError(f"config file {path}{position}: {type(error).__name__}: {error}") from error
    if isinstance(config, Mapping):
        return {key: value for key, value in config.items()}
    kind = type(config).__name__
    raise UserError(f"config file {path}: get_config() should return a ConfigDict, not {kind}")


def _apply(override: str, schema: type, raw: dict[str, Any]) -> None:
    """Writes one override, typed by the schema, into the complete nested dict of a config."""
    key, equals, text = override.removeprefix("--").partition("=")
    first, *parts = key.split(".")
    if not equals or first != _ROOT or not parts:
        raise UserError(f"override {override!r} should look like --{_ROOT}.section.key=value")
    node, section, path = raw, schema, _ROOT
    for depth, part in enumerate(parts):
        hints = fields.hints(section)
        part = rename_key(section, part, path)
        path = f"{path}.{part}"
        if part not in hints:
            raise _unknown(path, section, schema)
        if depth + 1 == len(parts):
            node[part] = parse(text, hints[part], path)
            return
        section = next((kind for kind in fields.kinds(hints[part]) if dataclasses.is_dataclass(kind)), None)
        if section is None:
            raise UserError(f"{path} is a single value, it has no field {parts[depth + 1]!r}")
        if node[part] is None:
            node[part] = {}
        node = node[part]


def complete_config(schema: type, stored: Mapping[str, Any]) -> Mapping[str, Any]:
    """Brings a config that an earlier version stored up to date.

    Args:
      schema: the dataclass of today.
      stored: the config as nested mappings.

    Returns:
      The config with current names of keys and with the defaults of fields that were added since;
      `stored` itself if it does not fit the schema.
    """
    try:
        return to_dict(from_dict(schema, stored))
    except UserError:
        return stored


def _section(section: type[Schema], mapping: Any, path: str, schema: type) -> Schema:
    if dataclasses.is_dataclass(mapping) and isinstance(mapping, section):
        # Dataclasses do not check types, and a workdir must be able to read this again.
        mapping = to_dict(mapping)
    if not isinstance(mapping, Mapping):
        raise fields.wrong(path, mapping, section)
    hints, annotations = fields.hints(section), fields.annotations(section)
    for key in mapping:
        if key not in hints:
            raise _unknown(f"{path}.{key}", section, schema)
    values = {}
    for field in dataclasses.fields(section):
        if field.name in mapping:
            key = f"{path}.{field.name}"
            values[field.name] = fields.convert(
                hints[field.name],
                mapping[field.name],
                key,
                lambda kind, value, path: _section(kind, value, path, schema),
            )
            fields.check_ranges(annotations[field.name], values[field.name], key)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise UserError(f"{path}.{field.name} is missing; it is a {fields.spell(hints[field.name])}")
    try:
        return section(**values)
    except UserError as error:
        raise error if str(error).startswith(_ROOT) else UserError(f"{path}: {error}") from error
    except (ValueError, TypeError) as error:
        raise UserError(f"{path}: {error}") from error


def _keys(section: type, prefix: str = _ROOT) -> Iterator[str]:
    """Every full key of a schema, sections included."""
    for name, expected in fields.hints(section).items():
        yield f"{prefix}.{name}"
        for kind in fields.kinds(expected):
            if dataclasses.is_dataclass(kind):
                yield from _keys(kind, f"{prefix}.{name}")


def _unknown(path: str, section: type, schema: type) -> UserError:
    parent, _, name = path.rpartition(".")
    siblings = difflib.get_close_matches(name, list(fields.hints(section)), n=1)
    same_name = [key for key in _keys(schema) if key.rpartition(".")[2] == name]
    anywhere = difflib.get_close_matches(path, list(_keys(schema)), n=1, cutoff=0.0)
    nearest = f"{parent}.{siblings[0]}" if siblings else (same_name or anywhere)[0]
    return UserError(f"unknown key {path}; the nearest right name is {nearest}")
