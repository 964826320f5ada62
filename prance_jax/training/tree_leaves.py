"""A pytree of arrays as leaves with names: what is stored of each, and how it is put back."""

import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def path_name(path: tuple) -> str:
    """A key path as people write it: ``params/blocks/0/kernel``."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def leaves_by_path(tree: Any) -> dict[str, Any]:
    """The leaves by name, in the order of the tree."""
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def is_key(leaf: Any) -> bool:
    """Whether the leaf is an array of typed PRNG keys."""
    return jnp.issubdtype(getattr(leaf, "dtype", np.float32), jax.dtypes.prng_key)


def plain_arrays(tree: Any) -> Any:
    """The tree with plain arrays only: the data of typed keys, scalars as arrays."""
    return jax.tree.map(lambda leaf: jax.random.key_data(leaf) if is_key(leaf) else jnp.asarray(leaf), tree)


def leaf_kind(leaf: Any) -> list:
    """``[shape, dtype]``, JSON-able."""
    return [list(leaf.shape), jnp.dtype(leaf.dtype).name]


def checksum(leaf: Any) -> int | None:
    """CRC-32 of the bytes; None for an array of which this process sees only a part."""
    if not getattr(leaf, "is_fully_addressable", True):
        return None
    return zlib.crc32(np.ascontiguousarray(np.asarray(leaf)).reshape(-1).view(np.uint8))


def abstract_leaf(leaf: Any, place: Any) -> Any:
    """What Orbax is to restore into: sharded like the example, or on the host."""
    sharding = getattr(place, "sharding", None)
    if sharding is not None and len(sharding.device_set) > 1:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
    return np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape)  # a view: costs no memory


def rebuild_tree(example: Any, found: Any) -> jax.Array:
    """The stored array (None if it was of size zero) as a leaf like the example."""
    if found is None:  # arrays of size zero are not stored
        return jnp.zeros(example.shape, example.dtype)
    # A copy, because the training step may donate its buffers and must not own Orbax's memory.
    array = found if isinstance(found, jax.Array) else jnp.array(found, copy=True)
    return jax.random.wrap_key_data(array, impl=_impl(example)) if is_key(example) else array


def _impl(keys: Any) -> Any:
    """The PRNG implementation of typed keys, abstract ones too."""
    found = []

    def look(leaf):
        found.append(jax.random.key_impl(leaf))
        return jax.random.key_data(leaf)

    jax.eval_shape(look, keys)
    return found[0]
