"""Every tensor of a file is used once and every place of a network is filled, or one error lists what is not so."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from prance_jax.core.errors import UserError

Tree = dict[str, Any]


def fill_tree(found: Mapping[str, np.ndarray], wanted: Tree, what: str) -> Tree:
    """Arranges arrays by path ('a/b/c') into the tree `wanted`; each is used once and each place is filled.

    found: a name that begins with '? ' is of a tensor that has no place. what: where they come from.
    Raises UserError with all differences at once; what differs alike in several layers is said once.
    """
    places = dict(paths(wanted))
    problems = [f"missing {path} {tuple(leaf.shape)}" for path, leaf in places.items() if path not in found]
    problems += [
        f"not used: {path.removeprefix('? ')} {value.shape}"
        for path, value in found.items()
        if path not in places
    ]
    problems += [
        f"{path}: wanted {tuple(places[path].shape)}, found {value.shape}"
        for path, value in found.items()
        if path in places and tuple(places[path].shape) != value.shape
    ]
    if problems:
        raise UserError(f"{what} does not fit the model: " + "; ".join(in_layers(problems)))
    tree: Tree = {}
    for path in places:
        node = tree
        *parents, last = path.split("/")
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = found[path]
    return tree


def in_layers(lines: list[str]) -> list[str]:
    """Lines that differ only in the number of a layer as one: 'missing block_{0,1,2}/fc1/bias (8,)'."""
    layer = re.compile(r"(?<=block_)\d+|(?<=blocks\.)\d+")
    alike: dict[str, list[str]] = {}
    for line in lines:
        alike.setdefault(layer.sub("{}", line, count=1), []).extend(layer.findall(line)[:1])
    return [
        text.replace("{}", numbers[0] if len(numbers) == 1 else f"{{{','.join(numbers)}}}", 1)
        if numbers
        else text
        for text, numbers in alike.items()
    ]


def paths(tree: Tree, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves by path, 'block_0/qkv/kernel'."""
    for name, node in tree.items():
        if isinstance(node, Mapping):
            yield from paths(node, f"{prefix}{name}/")
        else:
            yield f"{prefix}{name}", node
