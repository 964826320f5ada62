"""Where parameters and images lie on many devices: one mesh, two axes, rules by shape.

Images are divided over both axes. Parameters are whole on every device, or divided over `fsdp` (fully sharded data parallel):
the compiler gathers each where it is used. Between two stages of training everything is whole on one device of each host
(`local`), so that only training steps and evaluation know about meshes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from prance_jax.core.errors import UserError

Tree = Any

ROWS = P(("data", "fsdp"))
"""Of arrays whose first axis counts images."""

SMALLEST = 2**14
"""Arrays with fewer numbers are not divided: moving them would cost more than it saves."""


@dataclass(frozen=True)
class MeshConfig:
    """data: devices over which only images are divided; by default all that there are, over `fsdp`. fsdp: over which
    parameters and the optimizer's state are divided as well."""

    data: int | None = None
    fsdp: int = 1

    def __post_init__(self):
        if self.fsdp < 1 or (self.data is not None and self.data < 1):
            raise UserError(f"mesh: data and fsdp must be 1 or more, not {self.data} and {self.fsdp}")


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh | None:
    """The mesh of a config, None where it is one device. Raises UserError when the devices are too few.

    devices: by default all of this run, those of other hosts included.
    """
    devices = jax.devices() if devices is None else list(devices)
    data = max(len(devices) // config.fsdp, 1) if config.data is None else config.data
    count = data * config.fsdp
    if count > len(devices) or (jax.process_count() > 1 and count != len(devices)):
        raise UserError(
            f"mesh: data {data} x fsdp {config.fsdp} is {count} devices; there are {len(devices)}"
            + (", and with several hosts all are used" if jax.process_count() > 1 else "")
        )
    if count == 1:
        return None
    return jax.make_mesh(
        (data, config.fsdp), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2, devices=devices[:count]
    )


def check_batch_sizes(mesh: Mesh | None, **batches: int) -> None:
    """Raises UserError for a batch size that the devices cannot share evenly."""
    for name, size in batches.items():
        if mesh is not None and size % mesh.size:
            raise UserError(
                f"{name} is {size}; on {mesh.size} devices it must be a multiple of {mesh.size}, say "
                f"{-(-size // mesh.size) * mesh.size}"
            )


def fsdp_sharding(mesh: Mesh, shape: Sequence[int]) -> NamedSharding:
    """Of a parameter or what an optimizer keeps for it: the largest axis that `fsdp` divides, else whole."""
    parts = mesh.shape["fsdp"]
    axes = [axis for axis, size in enumerate(shape) if size % parts == 0]
    if parts == 1 or not axes or int(np.prod(shape)) < SMALLEST:
        return NamedSharding(mesh, P())
    largest = max(axes, key=lambda axis: shape[axis])
    return NamedSharding(mesh, P(*(("fsdp" if axis == largest else None) for axis in range(len(shape)))))


def shard_state(mesh: Mesh | None, tree: Tree) -> Tree:
    """Puts a state on the mesh, by `sharding`; every host gives the same values."""
    return (
        tree
        if mesh is None
        else jax.tree.map(lambda leaf: _put(leaf, fsdp_sharding(mesh, jnp.shape(leaf))), tree)
    )


def replicate(mesh: Mesh | None, tree: Tree) -> Tree:
    """Puts arrays on the mesh, whole on every device."""
    return tree if mesh is None else jax.tree.map(lambda leaf: _put(leaf, NamedSharding(mesh, P())), tree)


def shard_batch(
    mesh: Mesh | None, shape: tuple[int, ...], part: Callable[[int, int], np.ndarray]
) -> jax.Array | np.ndarray:
    """An array on the mesh, divided by its first axis; each host asks for the rows of its own devices only.

    part: (first, last) -> those rows.
    """
    if mesh is None:
        return part(0, shape[0])
    where = NamedSharding(mesh, ROWS)
    return jax.make_array_from_callback(shape, where, lambda index: part(*index[0].indices(shape[0])[:2]))


def fetch_local(tree: Tree) -> Tree:
    """The whole arrays on one device of this host, from wherever they lie."""
    far = [
        leaf
        for leaf in jax.tree.leaves(tree)
        if isinstance(leaf, jax.Array) and len(leaf.sharding.device_set) > 1
    ]
    if not far:
        return tree
    whole = NamedSharding(far[0].sharding.mesh, P())
    return jax.tree.map(
        lambda leaf: leaf.addressable_data(0), jax.jit(lambda own: own, out_shardings=whole)(tree)
    )


def constrain_batch(mesh: Mesh | None, tree: Tree) -> Tree:
    """Inside jit: arrays whose first axis counts images stay divided."""
    return tree if mesh is None else jax.lax.with_sharding_constraint(tree, NamedSharding(mesh, ROWS))


def replicate_in_jit(mesh: Mesh | None, tree: Tree) -> Tree:
    """Inside jit: arrays are whole on every device."""
    return tree if mesh is None else jax.lax.with_sharding_constraint(tree, NamedSharding(mesh, P()))


def jit_step(step: Callable[..., tuple[Tree, Tree]], mesh: Mesh | None) -> Callable[..., tuple[Tree, Tree]]:
    """A compiled training step (state, ...) -> (state, metrics): the state is donated and stays where it lies."""
    if mesh is None:
        return jax.jit(step, donate_argnums=0)

    @functools.wraps(step)
    def placed(state, *rest):
        state, metrics = step(state, *rest)
        state = jax.tree.map(
            lambda leaf: jax.lax.with_sharding_constraint(leaf, fsdp_sharding(mesh, leaf.shape)), state
        )
        return state, replicate_in_jit(mesh, metrics)

    return jax.jit(placed, donate_argnums=0)


def init_distributed(distributed: str | None) -> None:
    """Joins the processes of one run, before anything else asks for devices.

    distributed: None for one process alone, 'auto' where the cluster tells (TPU pods, SLURM, ...), or
    'ADDRESS,PROCESSES,INDEX': where the first process listens, how many there are, and which one this is.
    Raises UserError where that cannot be read or the others do not come.
    """
    if distributed is None:
        return
    arguments: dict[str, Any] = {}
    if distributed != "auto":
        words = distributed.split(",")
        if (
            len(words) != 3
            or not (words[1].isdigit() and words[2].isdigit())
            or int(words[2]) >= int(words[1])
        ):
            raise UserError(
                f"--distributed {distributed!r}: say 'auto', or ADDRESS,PROCESSES,INDEX with INDEX from 0"
            )
        arguments = dict(coordinator_address=words[0], num_processes=int(words[1]), process_id=int(words[2]))
    try:
        jax.distributed.initialize(**arguments)
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"--distributed {distributed}: the processes did not find each other ({error})"
        ) from error


def is_main_process() -> bool:
    """Whether this host writes what all hosts would write: the first one does."""
    return jax.process_index() == 0


def _put(leaf: Any, where: NamedSharding) -> jax.Array:
    if jnp.issubdtype(getattr(leaf, "dtype", np.float32), jax.dtypes.prng_key):
        data = _put(jax.random.key_data(leaf), where)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
    if getattr(leaf, "sharding", None) == where:
        return leaf
    values = np.asarray(leaf)
    return jax.make_array_from_callback(values.shape, where, lambda index: values[index])
