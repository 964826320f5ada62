"""Reads the text of an override by the type of its key."""

import dataclasses
from typing import Any, Literal, get_args, get_origin

from prance_jax.core.errors import UserError
from prance_jax.core.fields import kinds, wrong


def parse(text: str, expected: Any, path: str) -> Any:
    """Converts the text of an override to the type of its key.

    Args:
      text: the value as written on the command line, for example ``(1,0.5),(2,1)``.
      expected: type of the key, from `core.fields.hints`.
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
