"""Configuration values as text: how a typed value is written on the command line and named in a message."""

import dataclasses
import types
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from prance_jax.core.errors import UserError


def parse(text: str, wanted: Any, path: str) -> Any:
    """The text of an override as the wanted type; checked again when the config is built."""
    members, text = kinds(wanted), text.strip()
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
    raise wrong(path, text, wanted)


def kinds(wanted: Any) -> tuple[Any, ...]:
    """The members of a union, or the type itself."""
    return get_args(wanted) if get_origin(wanted) in (Union, types.UnionType) else (wanted,)


def wrong(path: str, value: Any, wanted: Any) -> UserError:
    """The error for a value of the wrong type: key, value, wanted type."""
    return UserError(f"{path} = {value!r} has the wrong type; it should be {spell(wanted)}")


def spell(wanted: Any) -> str:
    """A type as people write it."""
    if get_origin(wanted) is Literal:
        return "one of " + ", ".join(repr(choice) for choice in get_args(wanted))
    if dataclasses.is_dataclass(wanted):
        return f"a section with the fields {', '.join(get_type_hints(wanted))}"
    members = kinds(wanted)
    if len(members) > 1:
        return " or ".join(spell(kind) for kind in members)
    if get_origin(wanted) is tuple:
        return f"tuple[{', '.join('...' if item is Ellipsis else spell(item) for item in get_args(wanted))}]"
    return "None" if wanted is type(None) else getattr(wanted, "__name__", str(wanted))


def _split(text: str) -> list[str]:
    """``(1,2),(3,)`` to ``["(1,2)", "(3,)"]``; brackets around the whole are optional, so is a last comma."""
    if text[:1] + text[-1:] in ("()", "[]") and _depths(text[1:-1]) is not None:
        text = text[1:-1]
    depths = _depths(text) or []
    commas = [i for i, depth in enumerate(depths) if text[i] == "," and depth == 0]
    pieces = [text[a + 1 : b].strip() for a, b in zip([-1, *commas], [*commas, len(text)])]
    return pieces[:-1] if not pieces[-1] else pieces


def _depths(text: str) -> list[int] | None:
    """How many brackets are open at each character; None where one closes that was never opened."""
    depth, depths = 0, []
    for character in text:
        depth += (character in "([") - (character in ")]")
        if depth < 0:
            return None
        depths.append(depth)
    return depths
