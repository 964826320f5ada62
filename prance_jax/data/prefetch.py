"""Moves the tables of each training step to the device, ahead of the step."""

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
    """Yields the tables for `source.sample`, one training step after another.

    A source with `batches` is a stream: each host reads its part of the batch, and the next batch
    is copied to the device while a step runs. The tables of any other source are copied once and
    whole.

    Args:
      source: the data source.
      batch: images of one step, over all hosts.
      start: first step.
      mesh: devices that share a batch; None for one device.
    """
    if not hasattr(source, "batches"):
        return itertools.repeat(replicate(mesh, source.tables))
    return _prefetch_one(map(lambda tables: _to_device(tables, mesh), source.batches(batch, start)))


def _prefetch_one(batches: Iterator[Tables]) -> Iterator[Tables]:
    """Stays one batch ahead: copies to a device are asynchronous."""
    current = next(batches)
    for following in batches:
        yield current
        current = following


def _to_device(tables: Tables, mesh: Mesh | None) -> Tables:
    if mesh is None:
        return jax.device_put(tables)
    sharding = NamedSharding(mesh, ROWS)
    return jax.tree.map(lambda array: jax.make_array_from_process_local_data(sharding, array), tables)
