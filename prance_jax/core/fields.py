"""Types and ranges of dataclass fields, declared by their annotations and checked in one place.

    steps: Annotated[int, Range(0, 1000)] = 100
    seeds: Annotated[tuple[int, ...], Entries("distinct", fewest=1)] = (0,)

A field has one of the types int, float, bool, str, Literal, ``X | None``, a tuple, or a dataclass.
"""

from __future__ import annotations

import dataclasses
import functools
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from prance_jax.core.errors import UserError


@dataclass(frozen=True)
class Range:
    """Range of a number; not-a-number and infinity are outside.

    Attributes:
      low: smallest number.
      high: largest number.
      above: whether `low` itself is left out.
      below: whether `high` itself is left out.
    """

    low: float
    high: float
    above: bool = False
    below: bool = False

    def check(self, number: float, path: str) -> None:
        """Checks a number.

        Args:
          number: int or float.
          path: full key, for the message.

        Raises:
          UserError: the number is outside.
        """
        low_ok = self.low < number if self.above else self.low <= number
        high_ok = number < self.high if self.below else number <= self.high
        if not (low_ok and high_ok):
            raise UserError(f"{path} = {number!r} is out of range; it should be {self}")

    def __str__(self) -> str:
        low, high = (f"{end:,}" if isinstance(end, int) else f"{end:g}" for end in (self.low, self.high))
        if self.above:
            return f"above {low} and {'below' if self.below else 'up to'} {high}"
        return f"{low} or more and below {high}" if self.below else f"from {low} to {high}"


@dataclass(frozen=True)
class Entries:
    """Order and number of the entries of a tuple.

    Attributes:
      order: 'any'; 'distinct', none twice; 'ascending' or 'descending', none twice either.
      fewest: smallest number of entries.
      decimals: decimals that distinguish numbers, where a row or stage is named by them; None for all.
    """

    order: Literal["any", "distinct", "ascending", "descending"] = "any"
    fewest: int = 0
    decimals: int | None = None

    def check(self, entries: Sequence[Any], path: str) -> None:
        """Checks a tuple.

        Args:
          entries: its entries.
          path: full key, for the message.

        Raises:
          UserError: there are too few, or they are not in this order.
        """
        shown = [entry if self.decimals is None else round(entry, self.decimals) for entry in entries]
        distinct = list(dict.fromkeys(shown))
        expected = {"any": shown, "distinct": distinct}.get(self.order)
        if expected is None:
            expected = sorted(distinct, reverse=self.order == "descending")
        if len(shown) < self.fewest or shown != expected:
            raise UserError(f"{path} = {tuple(entries)!r} is wrong; it should be {self}")

    def __str__(self) -> str:
        order = {"any": "", "distinct": ", none twice"}.get(self.order, f", {self.order}, none twice")
        decimals = "" if self.decimals is None else f" in {self.decimals} decimals"
        return f"{self.fewest or 'any number of'} {'or more ' if self.fewest else ''}entries{order}{decimals}"


# Integers. Steps are counted in int32, seeds are uint32. Larger sizes fit into no machine.
Steps = Annotated[int, Range(0, 2**31 - 1)]
Updates = Annotated[int, Range(1, 2**31 - 1)]
Seed = Annotated[int, Range(0, 2**32 - 1)]
Batch = Annotated[int, Range(1, 2**16)]
NumImages = Annotated[int, Range(1, 2**24)]
PoolSize = Annotated[int, Range(1, 2**20)]
Side = Annotated[int, Range(1, 2**13)]
NumChannels = Annotated[int, Range(1, 2**16)]
NumDevices = Annotated[int, Range(1, 2**16)]
Repeats = Annotated[int, Range(1, 1024)]
Index = Annotated[int, Range(0, 1024)]
# Floats. A share is above 0, a fraction may be 0; of a decay 1 would keep the first value for ever.
Share = Annotated[float, Range(0, 1, above=True)]
Fraction = Annotated[float, Range(0, 1)]
Decay = Annotated[float, Range(0, 1, below=True)]
Weight = Annotated[float, Range(0, 1_000_000)]
Positive = Annotated[float, Range(0, 1_000_000, above=True)]
LearningRate = Annotated[float, Range(0, 100)]
Ratio = Annotated[float, Range(0, 64, above=True)]
CostWeight = Annotated[float, Range(-100, 100)]


Section = Callable[[type, Any, str], Any]
"""(dataclass, value, full key) -> its instance."""


def convert(expected: Any, value: Any, path: str, section: Section) -> Any:
    """Converts a value to the type of its field where no information is lost.

    Args:
      expected: type, from `hints`.
      value: what was given; a list becomes a tuple, and an int a float, where the type has them.
      path: full key, for messages.
      section: builds the dataclasses in it.

    Raises:
      UserError: the value has another type.
    """
    members = kinds(expected)
    if value is None and type(None) in members:
        return None
    for kind in members:
        origin = get_origin(kind)
        if dataclasses.is_dataclass(kind):
            if isinstance(value, (Mapping, kind)):
                return section(kind, value, path)
        elif origin is Literal:
            if any(value == choice and type(value) is type(choice) for choice in get_args(kind)):
                return value
        elif origin is tuple:
            if isinstance(value, (tuple, list)):
                return _tuple(kind, value, path, section)
        elif kind is bool or isinstance(value, bool):
            if kind is bool and isinstance(value, bool):
                return value
        elif kind is int and isinstance(value, Integral):
            return int(value)
        elif kind is float and isinstance(value, Real):
            return float(value)
        elif kind is str and isinstance(value, str):
            return value
    raise wrong(path, value, expected)


def check_ranges(annotation: Any, value: Any, path: str) -> None:
    """Checks a value of the right type against the ranges in its annotation.

    Args:
      annotation: from `annotations`.
      value: the value of the field.
      path: full key, for the message.

    Raises:
      UserError: a number is out of its range, or the entries of a tuple are not in their order.
    """
    if value is None:
        return
    constraints: tuple[Any, ...] = ()
    if get_origin(annotation) is Annotated:
        annotation, *constraints = get_args(annotation)
    for kind in kinds(annotation):
        is_annotated = get_origin(kind) is Annotated
        is_tuple = get_origin(get_args(kind)[0] if is_annotated else kind) is tuple
        if is_tuple != isinstance(value, tuple):  # another member of the union
            continue
        if is_tuple and not is_annotated:
            for i, (item, entry) in enumerate(zip(_items(kind, len(value)), value)):
                check_ranges(item, entry, f"{path}[{i}]")
        elif is_annotated:
            check_ranges(kind, value, path)
    for constraint in constraints:
        constraint.check(value, path)


def check_fields(instance: Any, where: str) -> None:
    """Checks types and ranges of all fields of a dataclass that was made without a config.

    Args:
      instance: the dataclass.
      where: what it is, for the message.

    Raises:
      UserError: a field has a wrong type or is out of its range.
    """
    for name, expected in hints(type(instance)).items():
        value, path = getattr(instance, name), f"{where}: {name}"
        converted = convert(expected, value, path, _instance)
        check_ranges(annotations(type(instance))[name], converted, path)
        if converted != value:  # a list, which would make the dataclass unhashable
            raise wrong(path, value, expected)


def check_type(value: Any, where: str, *expected: type) -> None:
    """Checks the type of an argument.

    Args:
      value: the argument.
      where: function and argument, for the message.
      *expected: types that it may have.

    Raises:
      UserError: it has another type.
    """
    if not isinstance(value, expected) or isinstance(value, bool):
        names = " or ".join("None" if kind is type(None) else kind.__name__ for kind in expected)
        raise UserError(f"{where} = {value!r} has the wrong type; it should be {names}")


@functools.cache
def hints(section: type) -> Mapping[str, Any]:
    """Returns the types of the fields of a dataclass, without ranges."""
    return types.MappingProxyType(get_type_hints(section))


@functools.cache
def annotations(section: type) -> Mapping[str, Any]:
    """Returns the annotations of the fields of a dataclass, with ranges."""
    return types.MappingProxyType(get_type_hints(section, include_extras=True))


def kinds(expected: Any) -> tuple[Any, ...]:
    """Returns the members of a union, or the type itself."""
    return get_args(expected) if get_origin(expected) in (Union, types.UnionType) else (expected,)


def wrong(path: str, value: Any, expected: Any) -> UserError:
    """Returns the error for a value of the wrong type, or for an unknown choice.

    Args:
      path: full key.
      value: the value that was given.
      expected: type that the key should have.
    """
    if any(get_origin(kind) is Literal for kind in kinds(expected)):
        return UserError(f"{path} = {value!r} is not known; choose {spell(expected)}")
    return UserError(f"{path} = {value!r} has the wrong type; it should be {spell(expected)}")


def spell(expected: Any) -> str:
    """Returns a type as people write it, for example ``int or None``."""
    if get_origin(expected) is Literal:
        return "one of " + ", ".join(repr(choice) for choice in get_args(expected))
    if dataclasses.is_dataclass(expected):
        return f"a section ({expected.__name__}) with the fields {', '.join(hints(expected))}"
    members = kinds(expected)
    if len(members) > 1:
        return " or ".join(spell(kind) for kind in members)
    if get_origin(expected) is tuple:
        return (
            f"tuple[{', '.join('...' if item is Ellipsis else spell(item) for item in get_args(expected))}]"
        )
    return "None" if expected is type(None) else getattr(expected, "__name__", str(expected))


def _tuple(expected: Any, values: Sequence[Any], path: str, section: Section) -> tuple:
    items = _items(expected, len(values))
    if len(items) != len(values):
        raise wrong(path, values, expected)
    pairs = enumerate(zip(items, values))
    return tuple(convert(item, value, f"{path}[{i}]", section) for i, (item, value) in pairs)


def _items(expected: Any, length: int) -> tuple[Any, ...]:
    """Types of the entries of a tuple that has some length."""
    items = get_args(expected)
    return items[:1] * length if len(items) == 2 and items[1] is Ellipsis else items


def _instance(kind: type, value: Any, path: str) -> Any:
    """A dataclass in a field of another one has checked itself."""
    if not isinstance(value, kind):
        raise wrong(path, value, kind)
    return value
