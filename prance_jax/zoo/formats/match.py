"""Strict loading of named arrays into a network.

Every tensor of a file must be used (or named by `--ignore`), and every parameter must be filled.
One error names all mismatches.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from prance_jax.core.errors import UserError

Tree = dict[str, Any]


def fill_tree(arrays: Mapping[str, np.ndarray], template: Tree, origin: str) -> Tree:
    """Arranges arrays into a tree of parameters, each used once and each parameter filled.

    Args:
      arrays: path ('a/b/c') -> array; '? name' for a tensor without a parameter.
      template: nested dicts of arrays or shapes.
      origin: of the arrays, for error messages.

    Returns:
      The arrays in a tree like `template`.

    Raises:
      UserError: lists all mismatches; those that several layers share are listed once.
    """
    leaves = dict(named_leaves(template))
    problems = [f"missing {path} {tuple(leaf.shape)}" for path, leaf in leaves.items() if path not in arrays]
    problems += [
        f"not used: {path.removeprefix('? ')} {value.shape}"
        for path, value in arrays.items()
        if path not in leaves
    ]
    problems += [
        f"{path}: wanted {tuple(leaves[path].shape)}, found {value.shape}"
        for path, value in arrays.items()
        if path in leaves and tuple(leaves[path].shape) != value.shape
    ]
    if problems:
        raise UserError(f"{origin} does not fit the model: " + "; ".join(merge_layers(problems)))
    tree: Tree = {}
    for path in leaves:
        node = tree
        *parents, name = path.split("/")
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = arrays[path]
    return tree


def merge_layers(lines: list[str]) -> list[str]:
    """Merges lines that differ only in the layer: 'missing block_{0,1,2}/fc1/bias (8,)'."""
    layer = re.compile(r"(?<=block_)\d+|(?<=blocks\.)\d+")
    layers_of: dict[str, list[str]] = {}
    for line in lines:
        layers_of.setdefault(layer.sub("{}", line, count=1), []).extend(layer.findall(line)[:1])
    return [
        text.replace("{}", numbers[0] if len(numbers) == 1 else f"{{{','.join(numbers)}}}", 1)
        if numbers
        else text
        for text, numbers in layers_of.items()
    ]


def named_leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields (path, leaf), for example ('block_0/qkv/kernel', array).

    Args:
      tree: nested dicts.
      prefix: of all paths.
    """
    for name, node in tree.items():
        if isinstance(node, Mapping):
            yield from named_leaves(node, f"{prefix}{name}/")
        else:
            yield f"{prefix}{name}", node
