"""Sharding of parameters and images over devices: one mesh with two axes.

Images are sharded over both axes. Parameters are replicated, or sharded over `fsdp` (fully sharded
data parallel), in which case the compiler gathers each where it is used. Between two training
stages everything is whole on one device of each host (`fetch_local`). So only training steps and
evaluation handle meshes.
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
from prance_jax.core.fields import NumDevices, check_fields

Tree = Any

ROWS = P(("data", "fsdp"))
"""Partition of arrays whose first axis counts images."""

SMALLEST = 2**14
"""Arrays with fewer elements are replicated: moving them would cost more than it saves."""


@dataclass(frozen=True)
class MeshConfig:
    """Number of devices on each axis of the mesh.

    Attributes:
      data: devices over which only images are sharded; by default all devices, divided by `fsdp`.
      fsdp: devices over which parameters and optimizer state are sharded as well.
    """

    data: NumDevices | None = None
    fsdp: NumDevices = 1

    def __post_init__(self):
        check_fields(self, "mesh")


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh | None:
    """Makes the mesh of a config.

    Args:
      config: devices on each axis.
      devices: devices to use; by default all of this run, those of other hosts included.

    Returns:
      The mesh, or None if it has one device only.

    Raises:
      UserError: there are too few devices, or several hosts and not all devices are used.
    """
    devices = jax.devices() if devices is None else list(devices)
    data = max(len(devices) // config.fsdp, 1) if config.data is None else config.data
    count = data * config.fsdp
    if count > len(devices) or (jax.process_count() > 1 and count != len(devices)):
        raise UserError(
            f"mesh: data {data} x fsdp {config.fsdp} is {count} devices; there are {len(devices)}"
            + (", and with several hosts all must be used" if jax.process_count() > 1 else "")
        )
    if count == 1:
        return None
    return jax.make_mesh(
        (data, config.fsdp), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2, devices=devices[:count]
    )


def check_batch_sizes(mesh: Mesh | None, **batches: int) -> None:
    """Checks that batch sizes are multiples of the number of devices.

    Args:
      mesh: mesh of the run; None for one device.
      **batches: batch size by the name of its config key, for the message.

    Raises:
      UserError: a batch size cannot be divided evenly.
    """
    for name, size in batches.items():
        if mesh is not None and size % mesh.size:
            raise UserError(
                f"{name} is {size}; on {mesh.size} devices it must be a multiple of {mesh.size}, say "
                f"{-(-size // mesh.size) * mesh.size}"
            )


def fsdp_sharding(mesh: Mesh, shape: Sequence[int]) -> NamedSharding:
    """Returns the sharding of a parameter, or of the optimizer state that has its shape.

    The largest axis that `fsdp` divides is sharded. Without one, or for small arrays, the array is
    replicated.

    Args:
      mesh: mesh of the run.
      shape: shape of the array.
    """
    parts = mesh.shape["fsdp"]
    axes = [axis for axis, size in enumerate(shape) if size % parts == 0]
    if parts == 1 or not axes or int(np.prod(shape)) < SMALLEST:
        return NamedSharding(mesh, P())
    largest = max(axes, key=lambda axis: shape[axis])
    return NamedSharding(mesh, P(*(("fsdp" if axis == largest else None) for axis in range(len(shape)))))


def shard_state(mesh: Mesh | None, tree: Tree) -> Tree:
    """Puts a training state on the mesh, each array by `fsdp_sharding`.

    Args:
      mesh: mesh of the run; None leaves the state as it is.
      tree: arrays; every host passes the same values.
    """
    if mesh is None:
        return tree
    return jax.tree.map(lambda leaf: _put(leaf, fsdp_sharding(mesh, jnp.shape(leaf))), tree)


def replicate(mesh: Mesh | None, tree: Tree) -> Tree:
    """Puts arrays on the mesh, whole on every device.

    Args:
      mesh: mesh of the run; None leaves the arrays as they are.
      tree: arrays; every host passes the same values.
    """
    return tree if mesh is None else jax.tree.map(lambda leaf: _put(leaf, NamedSharding(mesh, P())), tree)


def shard_batch(
    mesh: Mesh | None, shape: tuple[int, ...], read_rows: Callable[[int, int], np.ndarray]
) -> jax.Array | np.ndarray:
    """Builds an array on the mesh, sharded by its first axis; each host reads only its own rows.

    Args:
      mesh: mesh of the run; None returns the NumPy array.
      shape: shape of the whole array.
      read_rows: (first, last) -> rows first to last - 1.
    """
    if mesh is None:
        return read_rows(0, shape[0])
    sharding = NamedSharding(mesh, ROWS)
    return jax.make_array_from_callback(
        shape, sharding, lambda index: read_rows(*index[0].indices(shape[0])[:2])
    )


def fetch_local(tree: Tree) -> Tree:
    """Gathers arrays, however they are sharded, whole on one device of this host."""
    sharded = [
        leaf
        for leaf in jax.tree.leaves(tree)
        if isinstance(leaf, jax.Array) and len(leaf.sharding.device_set) > 1
    ]
    if not sharded:
        return tree
    replicated = NamedSharding(sharded[0].sharding.mesh, P())
    return jax.tree.map(
        lambda leaf: leaf.addressable_data(0), jax.jit(lambda arrays: arrays, out_shardings=replicated)(tree)
    )


def constrain_batch(mesh: Mesh | None, tree: Tree) -> Tree:
    """Keeps arrays whose first axis counts images sharded, inside `jit`.

    Args:
      mesh: mesh of the run; None changes nothing.
      tree: arrays [B, ...].
    """
    return tree if mesh is None else jax.lax.with_sharding_constraint(tree, NamedSharding(mesh, ROWS))


def replicate_in_jit(mesh: Mesh | None, tree: Tree) -> Tree:
    """Replicates arrays on every device, inside `jit`.

    Args:
      mesh: mesh of the run; None changes nothing.
      tree: arrays.
    """
    return tree if mesh is None else jax.lax.with_sharding_constraint(tree, NamedSharding(mesh, P()))


def jit_step(step: Callable[..., tuple[Tree, Tree]], mesh: Mesh | None) -> Callable[..., tuple[Tree, Tree]]:
    """Compiles a training step; the state is donated and keeps its sharding.

    Args:
      step: (state, ...) -> (state, metrics).
      mesh: mesh of the run; None for one device.
    """
    if mesh is None:
        return jax.jit(step, donate_argnums=0)

    @functools.wraps(step)
    def sharded_step(state, *inputs):
        state, metrics = step(state, *inputs)
        state = jax.tree.map(
            lambda leaf: jax.lax.with_sharding_constraint(leaf, fsdp_sharding(mesh, leaf.shape)), state
        )
        return state, replicate_in_jit(mesh, metrics)

    return jax.jit(sharded_step, donate_argnums=0)


def init_distributed(distributed: str | None) -> None:
    """Joins the processes of one run; call it before anything uses a device.

    Args:
      distributed: None for a single process; 'auto' where the cluster gives the addresses (TPU
        pods, SLURM, ...); or 'ADDRESS,PROCESSES,INDEX': address of the first process, number of
        processes, and index of this one.

    Raises:
      UserError: the text cannot be read, or the other processes are not reached.
    """
    if distributed is None:
        return
    arguments: dict[str, Any] = {}
    if distributed != "auto":
        parts = distributed.split(",")
        is_valid = len(parts) == 3 and parts[1].isdigit() and parts[2].isdigit()
        if not is_valid or int(parts[2]) >= int(parts[1]):
            raise UserError(
                f"--distributed {distributed!r}: say 'auto', or ADDRESS,PROCESSES,INDEX with INDEX from 0"
            )
        arguments = dict(coordinator_address=parts[0], num_processes=int(parts[1]), process_id=int(parts[2]))
    try:
        jax.distributed.initialize(**arguments)
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"--distributed {distributed}: the processes did not reach each other ({error})"
        ) from error
    check_devices()


def check_devices() -> None:
    """Checks that JAX finds a device of the platform that it should use.

    Raises:
      UserError: there is none.
    """
    try:
        jax.devices()
    except Exception as error:  # its type depends on the platform
        wanted = jax.config.jax_platforms
        reason = (str(error) or "none is installed").splitlines()[0]
        raise UserError(
            f"JAX finds no device of platform {wanted or 'cpu'} ({reason}); install JAX for it, or set "
            "JAX_PLATFORMS to another one, such as cpu"
        ) from error


def is_main_process() -> bool:
    """Returns whether this process writes the files of the run: the first one does."""
    return jax.process_index() == 0


def _put(leaf: Any, sharding: NamedSharding) -> jax.Array:
    if jnp.issubdtype(getattr(leaf, "dtype", np.float32), jax.dtypes.prng_key):
        data = _put(jax.random.key_data(leaf), sharding)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
    if getattr(leaf, "sharding", None) == sharding:
        return leaf
    values = np.asarray(leaf)
    return jax.make_array_from_callback(values.shape, sharding, lambda index: values[index])
