"""Latency of buckets on one device: a table that can replace MACs as the cost of a structure."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

import jax
import jax.numpy as jnp
import numpy as np

from prance_jax.adaptive.buckets import Bucket, Buckets
from prance_jax.core.errors import UserError
from prance_jax.spec.model_spec import ModelSpec
from prance_jax.spec.structure import GroupChoice, Structure
from prance_jax.spec.token_counts import token_counts


@dataclass(frozen=True)
class LatencyTable:
    """Milliseconds per image, measured in batches on one device.

    Attributes:
      buckets: the buckets that were measured.
      first: embedding and group 0, ms.
      groups: `groups[g - 1][bucket][source]` is group g in `bucket` for an image that needed bucket
        `source` of the group before (one source for g = 1), ms. The last group includes the
        classifier.
      dense: the whole dense network, ms.
      device: name of the device.
    """

    buckets: Buckets
    first: float
    groups: tuple[tuple[tuple[float, ...], ...], ...]
    dense: float
    device: str = ""

    def __post_init__(self):
        sources = 1
        for buckets, times in zip(self.buckets.groups, self.groups, strict=True):
            if len(times) != len(buckets) or any(len(row) != sources for row in times):
                raise UserError("latency table: needs one time per bucket and bucket of the group before")
            sources = len(buckets)

    def milliseconds(self, structure: Structure) -> jax.Array:
        """Looks up the time of per-image structures, rounded up to buckets; float32 [B], ms."""
        spec = self.buckets.spec
        counts = token_counts(spec, structure).attention
        shape = jnp.broadcast_shapes((1,), *map(jnp.shape, jax.tree.leaves(structure)))
        total, source = jnp.float32(self.first), jnp.int32(0)
        for group, times in enumerate(self.groups, start=1):
            arriving = jnp.broadcast_to(counts[spec.space.first_layers[group]], shape)
            bucket = self.buckets.index(group, structure.groups[group], arriving)
            total = total + jnp.asarray(times, jnp.float32)[bucket, source]
            source = bucket
        return total

    def share(self, structure: Structure) -> jax.Array:
        """Returns the time of per-image structures over that of the dense network; float32 [B]."""
        return self.milliseconds(structure) / self.dense

    def save(self, path: str | Path, write: Callable[[Path, str], None]) -> None:
        """Writes the table as JSON.

        Args:
          path: file to write.
          write: (path, text) -> None, writes the file.
        """
        record = {
            "device": self.device,
            "dense_ms": self.dense,
            "first": self.buckets.first_choice,
            "first_ms": self.first,
            "groups": [
                {"plans": buckets, "ms": times} for buckets, times in zip(self.buckets.groups, self.groups)
            ],
        }
        write(Path(path), json.dumps(record, indent=1) + "\n")


def load_latency_table(path: str | Path, spec: ModelSpec) -> LatencyTable:
    """Reads a table that the profile command wrote.

    Args:
      path: JSON file.
      spec: network that the table is for; must have the search space that was measured.

    Raises:
      UserError: the file does not exist, is broken, or belongs to another network.
    """
    try:
        record = json.loads(Path(path).read_text())
        tuples = lambda value: tuple(map(tuples, value)) if isinstance(value, list) else value
        groups = tuple(
            tuple(Bucket(*tuples(bucket)) for bucket in group["plans"]) for group in record["groups"]
        )
        buckets = Buckets(spec, GroupChoice(*tuples(record["first"])), groups)
        times = tuple(tuples(group["ms"]) for group in record["groups"])
        table = LatencyTable(buckets, record["first_ms"], times, record["dense_ms"], record["device"])
    except FileNotFoundError:
        raise UserError(f"latency table {path} does not exist; the profile command writes it") from None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"{path} is not a latency table ({error}); write it with the profile command"
        ) from error
    for group in range(1, spec.space.groups):
        largest, largest_bucket = spec.largest.groups[group], buckets.groups[group - 1][-1]
        expected = (spec.space.layers[group], spec.rates)
        fits = (len(largest_bucket.widths), len(largest_bucket.tokens)) == expected
        if not fits or (np.array(largest_bucket.widths) < np.array(largest.widths)).any():
            raise UserError(f"latency table {path} was measured on another network than {spec.space.name}")
    return table
