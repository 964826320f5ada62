"""What a training step reads: the same tables at every step, or a batch for each."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import jax
from jax.sharding import Mesh, NamedSharding

from prance_jax.core.sharding import ROWS, replicate
from prance_jax.data.source import Source, Tables


def prefetch_to_device(
    source: Source, batch: int, start: int = 0, mesh: Mesh | None = None
) -> Iterator[Tables]:
    """Tables for `source.sample` at step `start`, `start` + 1, ...; on a mesh, on its devices.

    A source with `batches` is a stream: each host gives its part of the batch, and the next one is on its way to the device
    while a step runs. The tables of any other are there once and whole.
    """
    if not hasattr(source, "batches"):
        return itertools.repeat(replicate(mesh, source.tables))
    return _ahead(map(lambda own: _to_device(own, mesh), source.batches(batch, start)))


def _ahead(batches: Iterator[Tables]) -> Iterator[Tables]:
    """One batch ahead: copies to a device are asynchronous."""
    waiting = next(batches)
    for following in batches:
        yield waiting
        waiting = following


def _to_device(tables: Tables, mesh: Mesh | None) -> Tables:
    if mesh is None:
        return jax.device_put(tables)
    where = NamedSharding(mesh, ROWS)
    return jax.tree.map(lambda own: jax.make_array_from_process_local_data(where, own), tables)
