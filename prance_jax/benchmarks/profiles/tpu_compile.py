"""Does a config fit a TPU pod? Compiles the step of every stage for a topology, without a TPU.

It needs libtpu, the TPU compiler, which contains the topologies. Memory, operations and collectives
are those of the program that would run there.
"""

from __future__ import annotations

import functools
import math
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from prance_jax.config.experiment import Config
from prance_jax.core.errors import UserError
from prance_jax.core.sharding import fsdp_sharding, make_mesh
from prance_jax.data.arrays import ArrayTables
from prance_jax.data.load import placeholder_source
from prance_jax.models.forward import init_params
from prance_jax.models.vit import ViT
from prance_jax.spec.model_spec import ModelSpec
from prance_jax.training.stages import finetune, pretrain
from prance_jax.training.stages import selector as selector_stage
from prance_jax.training.stages.selector import Selector

# Memory of a chip in GiB, by the beginning of the name of its topology.
MEMORY = {"v4": 32, "v5e": 16, "v5p": 95, "v6e": 32}
STAGES = ("meta", "selector", "finetune")
_BYTES = {
    "pred": 1,
    "s8": 1,
    "u8": 1,
    "bf16": 2,
    "f16": 2,
    "s32": 4,
    "u32": 4,
    "f32": 4,
    "s64": 8,
    "u64": 8,
    "f64": 8,
}
_COLLECTIVE = re.compile(
    r"= (?P<shapes>\(.*?\)|\S+) "
    r"(?P<name>all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)(?:-start)?\("
)


@dataclass(frozen=True)
class Compiled:
    """The compiled step of one stage, on one device of the mesh.

    Attributes:
      stage: 'meta', 'selector' or 'finetune'.
      memory: GiB at the peak.
      limit: memory of the chip, GiB; None for an unknown chip.
      flops: operations per step.
      collectives: kind -> (number, bytes that they produce).
      gathers_forward: all-gathers in the forward pass alone, without gradients.
      seconds: time of the compilation.
    """

    stage: str
    memory: float
    limit: float | None
    flops: float
    collectives: dict[str, tuple[int, int]]
    gathers_forward: int
    seconds: float

    @property
    def fits(self) -> bool | None:
        """Whether the step fits in the memory of the chip; None for an unknown chip."""
        return None if self.limit is None else self.memory <= self.limit


def devices_of(topology: str) -> list:
    """Returns the devices of a TPU topology: 'v5e:2x4', 'v5e:16x16', 'v4:2x2x1', 'v6e:2x4', ...

    Raises:
      UserError: libtpu is missing, or has no such topology.
    """
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    # Nothing runs, so several compilations may share a machine.
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    from jax.experimental import topologies

    try:
        devices = list(topologies.get_topology_desc(platform="tpu", topology_name=topology).devices)
        if any(device.core_on_chip for device in devices):
            # v4 and v5p have two cores a chip, which by default run as one device ("megacore").
            megacore = topologies.get_topology_desc(topology, "tpu", chip_config_name="megacore")
            devices = list(megacore.devices)
        return devices
    except Exception as error:  # the plug-in raises its own types
        raise UserError(
            f"--topology {topology}: {str(error).splitlines()[0]}; "
            "the compiler comes with `pip install libtpu`, "
            "and names look like v5e:2x4, v5e:16x16, v4:2x2x1 or v6e:2x4"
        ) from error


def compile_stages(config: Config, topology: str, stages: Sequence[str] = STAGES) -> Iterator[Compiled]:
    """Compiles stages of a config's first token mode and yields each when it is done.

    Args:
      config: the configuration of a run.
      topology: see `devices_of`.
      stages: of `STAGES`.
    """
    devices = devices_of(topology)
    mesh = make_mesh(config.mesh, devices)
    if mesh is None:
        mesh = jax.make_mesh(
            (1, 1), ("data", "fsdp"), axis_types=(jax.sharding.AxisType.Auto,) * 2, devices=devices[:1]
        )
    limit = MEMORY.get(topology.partition(":")[0])
    source, mode = placeholder_source(config.data), config.token_modes[0]
    spec = config.spec(source, mode)
    first = spec.space.first_group(config.model.first_group)
    images = config.meta.batch
    shape = (images, source.image_size, source.image_size, source.channels)
    if config.data.name in ("folder", "tfds"):
        # A batch of a stream. A data set kept on the device adds its size, which is known.
        batch = ArrayTables(jax.ShapeDtypeStruct(shape, np.uint8), jax.ShapeDtypeStruct((images,), np.int32))
        tables = _divided(mesh, batch)
    else:
        tables = _replicated(mesh, jax.eval_shape(lambda: source.tables))
    key = _replicated(mesh, jax.eval_shape(lambda: jax.random.key(0)))
    index = _replicated(mesh, jax.ShapeDtypeStruct((), np.int32))
    params = jax.eval_shape(lambda: init_params(ViT(spec), jax.random.key(0)))
    selector = Selector(spec, config.selector, first, None, mesh)

    state = jax.eval_shape(lambda: selector.init(jax.random.key(0)))
    forward = functools.cache(lambda: _gathers(spec, mesh, params, images))

    def meta():
        keeps = (config.selector.keep_choices,) * spec.rates
        step = pretrain.meta_step(spec, config.meta, first, keeps, source.sample, mesh)
        fresh = jax.eval_shape(lambda: pretrain.init_pretrain(spec, config.meta, jax.random.key(0)))
        return step, (_sharded(mesh, fresh), index, key, tables)

    def select():
        pool = config.selector.pool
        pool_arrays = (
            jax.ShapeDtypeStruct((pool, *shape[1:]), spec.dtype),
            jax.ShapeDtypeStruct((pool,), jnp.int32),
            jax.ShapeDtypeStruct((pool, spec.num_classes), jnp.float32),
        )
        arguments = _sharded(mesh, state), index, key, *_replicated(mesh, (params, *pool_arrays))
        return selector_stage.selector_step(selector), arguments

    def tune():
        step = finetune.finetune_step(spec, config.finetune, selector.policy, source.sample, mesh)
        fresh = jax.eval_shape(lambda params: finetune.init_finetune(params, config.finetune), params)
        policy_params = _replicated(mesh, state["ppo"].policy)
        return step, (_sharded(mesh, fresh), index, key, tables, policy_params, _replicated(mesh, params))

    steps = dict(zip(STAGES, (meta, select, tune), strict=True))
    for stage in stages:
        yield _compiled(stage, *steps[stage](), limit, forward)


def _gathers(spec: ModelSpec, mesh: Mesh, params: Any, batch: int) -> int:
    """All-gathers in the masked forward pass with replicated parameters.

    Reducing tokens must not move images between devices.
    """
    structure = jax.eval_shape(
        lambda: spec.space.sample(jax.random.key(0), batch, ((0.5, 1.0),) * spec.rates)
    )
    images = jax.ShapeDtypeStruct((batch, *spec.image_shape), jnp.float32)
    run = jax.jit(lambda p, x, s: ViT(spec).apply({"params": p}, x, s))
    _, text = _program(
        run.lower(_replicated(mesh, params), _divided(mesh, images), _divided(mesh, structure))
    )
    return collectives(text).get("all-gather", (0, 0))[0]


def _compiled(
    stage: str, step: Any, arguments: tuple, limit: float | None, forward: Callable[[], int]
) -> Compiled:
    start = time.monotonic()
    program, text = _program(step.lower(*arguments))
    memory, cost = program.memory_analysis(), program.cost_analysis()
    peak = (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        + memory.temp_size_in_bytes
        - memory.alias_size_in_bytes
    )
    by_kind = collectives(text)
    return Compiled(
        stage,
        peak / 2**30,
        limit,
        float((cost or {}).get("flops", math.nan)),
        by_kind,
        # A step without any all-gather has none in its forward pass, which then need not be compiled.
        forward() if "all-gather" in by_kind else 0,
        time.monotonic() - start,
    )


def _program(lowered: jax.stages.Lowered) -> tuple[jax.stages.Compiled, str]:
    """The compiled program and its text.

    The compiler dumps the text itself. `as_text` would first read the program with jaxlib's parser,
    which does not support everything that a newer libtpu writes (asynchronous slices of v6e).
    """
    with tempfile.TemporaryDirectory() as folder:
        options = {"xla_dump_to": folder, "xla_dump_hlo_as_text": True}
        program = lowered.compile(compiler_options=options)
        texts = [file.read_text() for file in Path(folder).glob("*.after_optimizations.txt")]
    return program, "\n".join(texts) or program.as_text()


def collectives(text: str) -> dict[str, tuple[int, int]]:
    """Counts collectives in the text of a program: kind -> (number, bytes produced on a device)."""
    by_kind: dict[str, tuple[int, int]] = {}
    for match in _COLLECTIVE.finditer(text):
        size = sum(
            _BYTES.get(kind, 4) * math.prod(int(number) for number in shape.split(",") if number)
            for kind, shape in re.findall(r"(\w+)\[([\d,]*)\]", match["shapes"])
        )
        count, total = by_kind.get(match["name"], (0, 0))
        by_kind[match["name"]] = count + 1, total + size
    return by_kind


def _sharded(mesh: Mesh, tree: Any) -> Any:
    return jax.tree.map(lambda leaf: _at(leaf, fsdp_sharding(mesh, leaf.shape)), tree)


def _replicated(mesh: Mesh, tree: Any) -> Any:
    return jax.tree.map(lambda leaf: _at(leaf, NamedSharding(mesh, P())), tree)


def _divided(mesh: Mesh, tree: Any) -> Any:
    return jax.tree.map(lambda leaf: _at(leaf, NamedSharding(mesh, P(("data", "fsdp")))), tree)


def _at(leaf: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
