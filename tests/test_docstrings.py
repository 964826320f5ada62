"""Everything public has a docstring that Griffe, the parser of mkdocstrings, can read: Google style."""

import builtins
from pathlib import Path

import griffe
import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = griffe.load("prance_jax", search_paths=[ROOT], docstring_parser="google", resolve_aliases=False)


def modules(module):
    yield module
    for member in module.members.values():
        if not member.is_alias and member.is_module:
            yield from modules(member)


MODULES = list(modules(PACKAGE))
CLASSES = {
    name
    for module in MODULES
    for name, member in module.members.items()
    if not member.is_alias and member.is_class
}


def public_members(parent):
    """Classes, functions and methods that are defined here and public by their name."""
    for name, member in parent.members.items():
        if member.is_alias or name.startswith("_") or name == "setup":  # of Flax modules
            continue
        if member.is_function or member.is_class:
            yield member
        if member.is_class:
            yield from public_members(member)


def sections(member, kind: str) -> list:
    """Sections of one kind: parameters, attributes or raises."""
    return [part for part in member.docstring.parse("google", warnings=False) if part.kind.value == kind]


def documented(member, kind: str) -> set[str]:
    """Names in the sections of one kind."""
    return {entry.name.lstrip("*") for part in sections(member, kind) for entry in part.value}


def is_dataclass(member) -> bool:
    decorators = [str(decorator.value) for decorator in member.decorators]
    bases = {str(base) for base in member.bases}
    return any("dataclass" in text for text in decorators) or bool(bases & {"NamedTuple", "nn.Module"})


def fields(member) -> set[str]:
    return {
        name
        for name, attribute in member.members.items()
        if attribute.is_attribute
        and not name.startswith("_")
        and attribute.annotation is not None
        and "property" not in attribute.labels
    }


def problems(member) -> list[str]:
    """What is wrong with the docstring of a class or function."""
    if member.docstring is None:
        # A method that an interface documents needs no text of its own: `__call__` and overrides are private or listed.
        return ["has no docstring"]
    first = member.docstring.value.strip().split("\n\n")[0]
    errors = []
    if "\n" in first.strip() or not first.endswith((".", "?", ":")) or not first[0].isupper():
        errors.append("its first line is not one sentence on one line")
    if member.is_function:
        names = {parameter.name.lstrip("*") for parameter in member.parameters} - {"self", "cls"}
        missing = names - documented(member, "parameters")
        if len(names) > 1 and missing:
            errors.append(f"Args lacks {', '.join(sorted(missing))}")
        unknown = documented(member, "parameters") - names
        raised = {
            name
            for part in sections(member, "raises")
            for entry in part.value
            for name in str(entry.annotation).strip("()").split(", ")
        }
        nowhere = {name for name in raised if not hasattr(builtins, name) and name not in CLASSES}
        if nowhere:
            errors.append(f"Raises has {', '.join(sorted(nowhere))}, which do not exist")
        if unknown:
            errors.append(f"Args has {', '.join(sorted(unknown))}, which are not parameters")
    elif is_dataclass(member):
        missing = fields(member) - documented(member, "attributes")
        if missing:
            errors.append(f"Attributes lacks {', '.join(sorted(missing))}")
        unknown = documented(member, "attributes") - set(member.all_members)
        if unknown:
            errors.append(f"Attributes has {', '.join(sorted(unknown))}, which are not fields")
    return errors


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.path)
def test_docstrings(module):
    lines = [] if module.docstring is not None else [f"{module.path} has no docstring"]
    for member in public_members(module):
        lines += [f"{member.path}:{member.lineno} {problem}" for problem in problems(member)]
    assert not lines, "\n".join(lines)
