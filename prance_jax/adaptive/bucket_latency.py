"""Latency of plans on a device: a measured table that can take the place of multiply-accumulates."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from prance_jax.adaptive.buckets import Bucket, Buckets
from prance_jax.core.errors import UserError
from prance_jax.spec.macs import token_counts
from prance_jax.spec.model_spec import ModelSpec
from prance_jax.spec.structure import GroupChoice, Structure


@dataclass(frozen=True)
class LatencyTable:
    """Milliseconds of one image, measured in batches on one device.

    first: embedding and group 0. groups[g - 1][plan][source]: group g under `plan` for an image that comes from plan
    `source` of the group before (one source for g = 1); the last group includes the classifier. dense: the whole
    network. device: where this was measured.
    """

    buckets: Buckets
    first: float
    groups: tuple[tuple[tuple[float, ...], ...], ...]
    dense: float
    device: str = ""

    def __post_init__(self):
        before = 1
        for buckets, times in zip(self.buckets.groups, self.groups, strict=True):
            if len(times) != len(buckets) or any(len(row) != before for row in times):
                raise UserError("latency table: needs one time per plan and plan of the group before")
            before = len(buckets)

    def milliseconds(self, structure: Structure) -> jax.Array:
        """float32 [B] of per-image structures, each rounded up to its plans."""
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
        """float32 [B]: time of the structures over that of the dense network."""
        return self.milliseconds(structure) / self.dense

    def save(self, path: str | Path, write) -> None:
        """Writes JSON by `write(path, text)`."""
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
    """A table that the profile command wrote, for a network of the same search space.

    Raises UserError where there is none, it is broken, or it belongs to another network.
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
        choice = spec.largest.groups[group]
        wanted = (spec.space.layers[group], spec.rates)
        found = (len(buckets.groups[group - 1][-1].widths), len(buckets.groups[group - 1][-1].tokens))
        top = np.array(buckets.groups[group - 1][-1].widths) if found == wanted else None
        if top is None or (top < np.array(choice.widths)).any():
            raise UserError(f"latency table {path} was measured on another network than {spec.space.name}")
    return table
