"""Does a config fit a pod? Every stage's step compiled for a topology by the real TPU compiler, without a TPU.

`pip install libtpu` is all that it needs: the compiler knows the topologies. What it says of memory, operations and
collectives is what would run there.
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
from prance_jax.training.stages import finetune, pretrain
from prance_jax.training.stages import selector as selector_stage
from prance_jax.training.stages.selector import Selector

# Memory of a chip in GiB, by the name its topology begins with.
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
    r"= (?P<shapes>\(.*?\)|\S+) (?P<name>all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)(?:-start)?\("
)


@dataclass(frozen=True)
class Compiled:
    """One stage's step on one device of the mesh.

    memory: GiB at the peak; limit: of the chip, None where it is not known. flops: operations a step. collectives: kind ->
    (how many, bytes that they produce). gathers_forward: all-gathers in the forward pass alone, without gradients.
    seconds: of the compilation.
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
        return None if self.limit is None else self.memory <= self.limit


def devices_of(topology: str) -> list:
    """The devices of a TPU topology such as 'v5e:2x4', 'v5e:16x16', 'v4:2x2x1' or 'v6e:2x4'.

    Raises UserError where libtpu is missing or does not know it.
    """
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    # Nothing runs, so several compilations may share a machine.
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    from jax.experimental import topologies

    try:
        devices = list(topologies.get_topology_desc(platform="tpu", topology_name=topology).devices)
        if any(device.core_on_chip for device in devices):
            # v4 and v5p have two cores a chip, which run as one device ("megacore") unless one asks otherwise.
            found = topologies.get_topology_desc(topology, "tpu", chip_config_name="megacore")
            devices = list(found.devices)
        return devices
    except Exception as error:  # of the plug-in, which has its own kinds
        raise UserError(
            f"--topology {topology}: {str(error).splitlines()[0]}; the compiler comes with `pip install libtpu`, and names "
            "look like v5e:2x4, v5e:16x16, v4:2x2x1 or v6e:2x4"
        ) from error


def compile_stages(config: Config, topology: str, stages: Sequence[str] = STAGES) -> Iterator[Compiled]:
    """Compiles stage one, two and three of a config's first token mode, or those of `stages`; yields each as it is done."""
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
    side = (images, source.image_size, source.image_size, source.channels)
    if config.data.name in ("folder", "tfds"):
        # As a stream feeds them; a set that fits on the device adds its own size, known beforehand.
        seen = ArrayTables(jax.ShapeDtypeStruct(side, np.uint8), jax.ShapeDtypeStruct((images,), np.int32))
        tables = _spread(mesh, seen)
    else:
        tables = _whole(mesh, jax.eval_shape(lambda: source.tables))
    key, index = (
        _whole(mesh, jax.eval_shape(lambda: jax.random.key(0))),
        _whole(mesh, jax.ShapeDtypeStruct((), np.int32)),
    )
    params = jax.eval_shape(lambda: init_params(ViT(spec), jax.random.key(0)))
    selector = Selector(spec, config.selector, first, None, mesh)

    state = jax.eval_shape(lambda: selector.init(jax.random.key(0)))
    forward = functools.cache(lambda: _gathers(spec, mesh, params, images))

    def meta():
        keeps = (config.selector.keep_choices,) * spec.rates
        step = pretrain.meta_step(spec, config.meta, first, keeps, source.sample, mesh)
        fresh = jax.eval_shape(lambda: pretrain.init_pretrain(spec, config.meta, jax.random.key(0)))
        return step, (_placed(mesh, fresh), index, key, tables)

    def policy():
        pool = config.selector.pool
        seen = (
            jax.ShapeDtypeStruct((pool, *side[1:]), spec.dtype),
            jax.ShapeDtypeStruct((pool,), jnp.int32),
            jax.ShapeDtypeStruct((pool, spec.num_classes), jnp.float32),
        )
        arguments = _placed(mesh, state), index, key, _whole(mesh, params), *_whole(mesh, seen)
        return selector_stage.selector_step(selector), arguments

    def tuned():
        step = finetune.finetune_step(spec, config.finetune, selector.policy, source.sample, mesh)
        fresh = jax.eval_shape(lambda own: finetune.init_finetune(own, config.finetune), params)
        policy = _whole(mesh, state["ppo"].policy)
        return step, (_placed(mesh, fresh), index, key, tables, policy, _whole(mesh, params))

    steps = dict(zip(STAGES, (meta, policy, tuned), strict=True))
    for stage in stages:
        yield _compiled(stage, *steps[stage](), limit, forward)


def _gathers(spec, mesh: Mesh, params: Any, batch: int) -> int:
    """All-gathers in the masked forward pass of the network, parameters whole: selection must not move images."""
    structure = jax.eval_shape(
        lambda: spec.space.sample(jax.random.key(0), batch, ((0.5, 1.0),) * spec.rates)
    )
    images = jax.ShapeDtypeStruct((batch, spec.image_size, spec.image_size, spec.channels), jnp.float32)
    run = jax.jit(lambda p, x, s: ViT(spec).apply({"params": p}, x, s))
    _, text = _program(run.lower(_whole(mesh, params), _spread(mesh, images), _spread(mesh, structure)))
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
    moved = collectives(text)
    return Compiled(
        stage,
        peak / 2**30,
        limit,
        float((cost or {}).get("flops", math.nan)),
        moved,
        # A step without any all-gather has none in its forward pass: then the pass need not be compiled by itself.
        forward() if "all-gather" in moved else 0,
        time.monotonic() - start,
    )


def _program(lowered: jax.stages.Lowered) -> tuple[jax.stages.Compiled, str]:
    """The compiled program and its text.

    The compiler writes the text itself: `as_text` would read the program with jaxlib's own parser first, which does not know
    all that a newer libtpu writes (asynchronous slices of v6e).
    """
    with tempfile.TemporaryDirectory() as folder:
        options = {"xla_dump_to": folder, "xla_dump_hlo_as_text": True}
        program = lowered.compile(compiler_options=options)
        written = [own.read_text() for own in Path(folder).glob("*.after_optimizations.txt")]
    return program, "\n".join(written) or program.as_text()


def collectives(text: str) -> dict[str, tuple[int, int]]:
    """Kind -> (how many, bytes that they produce on a device), from the text of a compiled program."""
    found: dict[str, tuple[int, int]] = {}
    for match in _COLLECTIVE.finditer(text):
        size = sum(
            _BYTES.get(kind, 4) * math.prod(int(number) for number in shape.split(",") if number)
            for kind, shape in re.findall(r"(\w+)\[([\d,]*)\]", match["shapes"])
        )
        count, total = found.get(match["name"], (0, 0))
        found[match["name"]] = count + 1, total + size
    return found


def _placed(mesh: Mesh, tree: Any) -> Any:
    return jax.tree.map(lambda leaf: _at(leaf, fsdp_sharding(mesh, leaf.shape)), tree)


def _whole(mesh: Mesh, tree: Any) -> Any:
    return jax.tree.map(lambda leaf: _at(leaf, NamedSharding(mesh, P())), tree)


def _spread(mesh: Mesh, tree: Any) -> Any:
    return jax.tree.map(lambda leaf: _at(leaf, NamedSharding(mesh, P(("data", "fsdp")))), tree)


def _at(leaf: Any, where: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)
