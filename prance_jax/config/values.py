"""Configuration values as text: on the command line and in messages."""

import dataclasses
import types
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from prance_jax.core.errors import UserError


def parse(text: str, expected: Any, path: str) -> Any:
    """Converts the text of an override to the type of its key.

    Args:
      text: the value as written on the command line, for example ``(1,0.5),(2,1)``.
      expected: type of the key, from the annotation of the dataclass field.
      path: full key, for messages.

    Returns:
      The value; tuples as lists. It is checked again when the config is built.

    Raises:
      UserError: the text cannot be read as that type, or the key is a section.
    """
    members, text = kinds(expected), text.strip()
    if type(None) in members and text.lower() in ("none", "null"):
        return None
    for kind in members:
        if get_origin(kind) is tuple:
            items = get_args(kind)
            pieces = _split(text)
            if items[1:] == (Ellipsis,):
                items = items[:1] * len(pieces)
            if len(items) == len(pieces):
                return [parse(piece, item, path) for piece, item in zip(pieces, items)]
        elif get_origin(kind) is Literal:
            for choice in get_args(kind):
                if str(choice) == text:
                    return choice
        elif kind is bool:
            if text.lower() in ("true", "false"):
                return text.lower() == "true"
        elif kind in (int, float):
            try:
                return kind(text)
            except ValueError:
                continue
        elif kind is str:
            quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
            return text[1:-1] if quoted else text
        elif dataclasses.is_dataclass(kind):
            raise UserError(
                f"{path} is a section; set one of its fields: "
                + ", ".join(f"{path}.{field.name}" for field in dataclasses.fields(kind))
            )
    raise wrong(path, text, expected)


def kinds(expected: Any) -> tuple[Any, ...]:
    """Returns the members of a union, or the type itself."""
    return get_args(expected) if get_origin(expected) in (Union, types.UnionType) else (expected,)


def wrong(path: str, value: Any, expected: Any) -> UserError:
    """Returns the error for a value of the wrong type.

    Args:
      path: full key.
      value: the value that was given.
      expected: type that the key should have.
    """
    return UserError(f"{path} = {value!r} has the wrong type; it should be {spell(expected)}")


def spell(expected: Any) -> str:
    """Returns a type as people write it, for example ``int or None``."""
    if get_origin(expected) is Literal:
        return "one of " + ", ".join(repr(choice) for choice in get_args(expected))
    if dataclasses.is_dataclass(expected):
        return f"a section with the fields {', '.join(get_type_hints(expected))}"
    members = kinds(expected)
    if len(members) > 1:
        return " or ".join(spell(kind) for kind in members)
    if get_origin(expected) is tuple:
        return (
            f"tuple[{', '.join('...' if item is Ellipsis else spell(item) for item in get_args(expected))}]"
        )
    return "None" if expected is type(None) else getattr(expected, "__name__", str(expected))


def _split(text: str) -> list[str]:
    """Splits ``(1,2),(3,)`` into ``["(1,2)", "(3,)"]``; outer brackets and a last comma are optional."""
    if text[:1] + text[-1:] in ("()", "[]") and _depths(text[1:-1]) is not None:
        text = text[1:-1]
    depths = _depths(text) or []
    commas = [i for i, depth in enumerate(depths) if text[i] == "," and depth == 0]
    pieces = [text[a + 1 : b].strip() for a, b in zip([-1, *commas], [*commas, len(text)])]
    return pieces[:-1] if not pieces[-1] else pieces


def _depths(text: str) -> list[int] | None:
    """Counts the open brackets at each character; None if a bracket closes that was never opened."""
    depth, depths = 0, []
    for character in text:
        depth += (character in "([") - (character in ")]")
        if depth < 0:
            return None
        depths.append(depth)
    return depths
