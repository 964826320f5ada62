"""A pytree of arrays as named leaves: how checkpoints store and restore each of them."""

import zlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def path_name(path: tuple) -> str:
    """Returns a key path as text: ``params/blocks/0/kernel``."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def leaves_by_path(tree: Any) -> dict[str, Any]:
    """Returns the leaves by name, in the order of the tree."""
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def is_key(leaf: Any) -> bool:
    """Returns whether the leaf is an array of typed PRNG keys."""
    return jnp.issubdtype(getattr(leaf, "dtype", np.float32), jax.dtypes.prng_key)


def plain_arrays(tree: Any) -> Any:
    """Converts a tree to plain arrays only: the data of typed keys, scalars as arrays."""
    return jax.tree.map(lambda leaf: jax.random.key_data(leaf) if is_key(leaf) else jnp.asarray(leaf), tree)


def leaf_kind(leaf: Any) -> list:
    """Returns ``[shape, dtype]`` of a leaf, as JSON values."""
    return [list(leaf.shape), jnp.dtype(leaf.dtype).name]


def mismatches(expected: Mapping[str, list], stored: Mapping[str, list]) -> list[str]:
    """Lists the leaves that differ in shape or dtype, or that only one of two trees has.

    Args:
      expected: ``[shape, dtype]`` of each leaf by name.
      stored: the same of the stored tree.

    Returns:
      One line for each such leaf; empty if the trees fit.
    """
    return [
        f"{path}: wanted {_format_kind(expected.get(path))}, found {_format_kind(stored.get(path))}"
        for path in [*expected, *(path for path in stored if path not in expected)]
        if expected.get(path) != stored.get(path)
    ]


def _format_kind(kind: list | None) -> str:
    return f"{kind[1]}{tuple(kind[0])}" if kind else "nothing"


def checksum(leaf: Any) -> int | None:
    """Returns the CRC-32 of the bytes; None for an array that is partly on other processes."""
    if not getattr(leaf, "is_fully_addressable", True):
        return None
    return zlib.crc32(np.ascontiguousarray(np.asarray(leaf)).reshape(-1).view(np.uint8))


def abstract_leaf(leaf: Any, example: Any) -> Any:
    """Returns the target of a restore by Orbax: sharded like the example, or on the host.

    Args:
      leaf: shape and dtype of the stored array.
      example: the leaf with the wanted sharding.
    """
    sharding = getattr(example, "sharding", None)
    if sharding is not None and len(sharding.device_set) > 1:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
    return np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape)  # a view needs no memory


def abstract_tree(tree: Any) -> Any:
    """Returns shapes, dtypes and shardings of a tree, so that the memory of its arrays is freed."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), tree
    )


def strong_leaf(leaf: Any) -> jax.Array:
    """Removes the weak type of a Python scalar: restored arrays have none, and it changes results."""
    if is_key(leaf):
        return leaf
    array = jnp.asarray(leaf)
    return jax.lax.convert_element_type(array, array.dtype) if array.weak_type else array


def is_finite(leaf: Any) -> bool:
    """Returns whether all values of a leaf are finite; of several hosts, those on this one."""
    if is_key(leaf) or not jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
        return True
    if getattr(leaf, "is_fully_addressable", True):
        return bool(np.isfinite(np.asarray(leaf)).all())
    return all(bool(np.isfinite(np.asarray(shard.data)).all()) for shard in leaf.addressable_shards)


def rebuild_leaf(example: Any, stored: Any) -> jax.Array:
    """Returns a stored array as a leaf like the example.

    Args:
      example: array or `jax.ShapeDtypeStruct`; typed PRNG keys become typed keys again.
      stored: the array; None if its size is zero, since such arrays are not stored.
    """
    if stored is None:
        return jnp.zeros(example.shape, example.dtype)
    # A copy, because the training step may donate its buffers and must not own Orbax's memory.
    array = stored if isinstance(stored, jax.Array) else jnp.array(stored, copy=True)
    return jax.random.wrap_key_data(array, impl=_key_impl(example)) if is_key(example) else array


def _key_impl(keys: Any) -> Any:
    """Returns the PRNG implementation of typed keys, abstract ones too."""
    impls = []

    def key_data(leaf):
        impls.append(jax.random.key_impl(leaf))
        return jax.random.key_data(leaf)

    jax.eval_shape(key_data, keys)
    return impls[0]
