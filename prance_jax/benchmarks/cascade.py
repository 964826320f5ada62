"""The speed of a cascade: the executor against the dense network, with given shares of the images at its answers."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable

import jax
import jax.numpy as jnp
import numpy as np

from prance_jax.cascade.executor import serve_cascade
from prance_jax.cascade.forward import DecideAtExit
from prance_jax.cascade.looks import init_params
from prance_jax.cascade.tree import grow_tree
from prance_jax.core.errors import UserError
from prance_jax.core.files import write_atomic
from prance_jax.evaluation.timing import time_interleaved
from prance_jax.models.vit import ViT
from prance_jax.spec.cascade import Cascade, CascadeSpec, Look
from prance_jax.spec.model_spec import ModelSpec

ANSWERS = 3
"""Answers of the cascade that is measured."""
COLUMNS = (
    f"{'batch':>5} {'type':9} {'chunk':>5} {'dense img/s':>11} {'cascade img/s':>13} {'MACs %':>7} {'speed-up':>8} "
    f"{'achieved share %':>16} {'slots wasted %':>14}"
)
"""Heading of the lines of `CascadeSpeed.line`."""


@dataclass(frozen=True)
class CascadeSpeed:
    """Speed of the executor and of the dense network at one batch size; times are medians.

    At batch 1 the time of the executor is the mean over images: that of every path, weighted by its share.

    Attributes:
      batch: images per call.
      dtype: type of the computation, for example ``float32``.
      chunk: images of a chunk of the executor, at most.
      dense_images_per_s: images per second of the dense network.
      images_per_s: images per second of the executor.
      dense_ms: milliseconds per call of the dense network.
      latency_ms: milliseconds per call of the executor.
      shares: shares of the images that stopped at each answer, as drawn.
      macs_kept: mean MACs of the images as a share of the dense network's.
      speedup: images_per_s over dense_images_per_s.
      realised_share: achieved share, ``speedup * macs_kept``.
      slots: images that all chunks together had room for, over the whole pass; at batch 1 the mean.
      wasted_share: share of the slots that copies of images filled.
      path_ms: at batch 1, milliseconds of an image that stops at each answer; otherwise empty.
      spread: first and third quartile of latency_ms; at batch 1 the means of the paths' quartiles.
      dense_spread: first and third quartile of dense_ms.
    """

    batch: int
    dtype: str
    chunk: int
    dense_images_per_s: float
    images_per_s: float
    dense_ms: float
    latency_ms: float
    shares: tuple[float, ...]
    macs_kept: float
    speedup: float
    realised_share: float
    slots: float
    wasted_share: float
    path_ms: tuple[float, ...]
    spread: tuple[float, float]
    dense_spread: tuple[float, float]

    @property
    def line(self) -> str:
        """The row of the printed table, see `COLUMNS`."""
        return (
            f"{self.batch:5} {self.dtype:9} {self.chunk:5} {self.dense_images_per_s:11.1f} "
            f"{self.images_per_s:13.1f} {100 * self.macs_kept:7.1f} {self.speedup:8.2f} "
            f"{100 * self.realised_share:16.1f} {100 * self.wasted_share:14.1f}"
        )


def two_look_cascade(spec: ModelSpec) -> Cascade:
    """Builds a cascade with three answers: after a look at half the side, and in the middle and at the end of another.

    The looks share no weights and run at their largest structures.

    Args:
      spec: the network, which is the second look; its exits are replaced by one in the middle group.

    Raises:
      UserError: the image has fewer than two patches on a side, or the network has a single group.
    """
    side, groups = spec.image_size // spec.patch_size, spec.space.groups
    if side < 2 or groups < 2:
        raise UserError(
            f"the cascade needs an image of at least 2 patches on a side and a network of at least 2 groups; "
            f"this one has {side} and {groups}"
        )
    last = dataclasses.replace(spec, exits=((groups - 1) // 2,))
    first = dataclasses.replace(spec, exits=(), image_size=side // 2 * spec.patch_size, full_last_layer=True)
    return grow_tree(
        CascadeSpec((Look(first), Look(last))), ((first.largest,), (last.largest,)), begin=((0, 0),)
    )


def draw_stops(shares: tuple[float, ...], batch: int, seed: int = 0) -> np.ndarray:
    """Returns the answer with which each image stops, int32 [batch], from 0.

    Every image has a random number; these are spread evenly, so that the shares are exact up to rounding.

    Args:
      shares: share of the images for each answer.
      batch: number of images.
      seed: of the random numbers.
    """
    numbers = (np.random.default_rng(seed).permutation(batch) + 0.5) / batch
    return np.searchsorted(np.cumsum(shares)[:-1], numbers, side="right").astype(np.int32)


def stop_actions(cascade: Cascade, stops: np.ndarray) -> np.ndarray:
    """Returns the actions with which images stop, int32 [B, nodes].

    Args:
      cascade: a tree with one path, whose answers are its nodes in order.
      stops: int32 [B], answer with which each image stops, from 0.
    """
    return (np.arange(cascade.num_nodes) <= stops[:, None]).astype(np.int32)


def given_actions(actions: jax.Array) -> DecideAtExit:
    """Returns decisions that follow a table.

    Args:
      actions: int32 [B, nodes], action of each image at each node.
    """
    return lambda node, features: jnp.take_along_axis(actions, node[:, None], axis=1)[:, 0]


def default_chunk(batch: int) -> int:
    """Returns the images of a chunk that the benchmark uses for a batch size.

    Args:
      batch: images per call.
    """
    return max(1, min(8, batch // 4))


def measure_cascade(
    spec: ModelSpec,
    batch: int,
    *,
    shares: tuple[float, ...] = (0.3, 0.4, 0.3),
    chunk: int | None = None,
    repeats: int = 7,
) -> CascadeSpeed:
    """Measures the executor on the cascade of `two_look_cascade` and the dense network, both with random weights.

    Args:
      spec: the network.
      batch: images per call.
      shares: share of the images that stop at each of the three answers.
      chunk: images of a chunk, at most; None for `default_chunk`.
      repeats: interleaved repeats, of which medians are taken.
    """
    cascade, chunk = two_look_cascade(spec), min(chunk or default_chunk(batch), batch)
    params = init_params(cascade.spec, jax.random.key(1))
    shape = (batch, *spec.image_shape)
    images = jax.random.normal(jax.random.key(2), shape, dtype=jnp.float32)

    def dense(params, images):
        return ViT(spec).apply({"params": params}, images, spec.largest)

    def served(params, images, actions):
        output = serve_cascade(cascade, params, images, given_actions(actions), chunk)
        return output.logits, output.node, output.slots

    # One image has no shares: every path is measured, and `weights` gives the mean.
    if batch == 1:
        drawn, weights = [np.asarray([answer]) for answer in range(ANSWERS)], np.asarray(shares)
    else:
        drawn, weights = [draw_stops(shares, batch)], np.ones(1)
    tables = [jnp.asarray(stop_actions(cascade, stops)) for stops in drawn]
    dense_params = {name: value for name, value in params["look_1"].items() if "exit" not in name}
    run_dense = jax.jit(dense).lower(dense_params, images).compile()
    run = jax.jit(served).lower(params, images, tables[0]).compile()
    calls: dict[str, Callable[[], Any]] = {"dense": lambda: run_dense(dense_params, images)}
    for number, table in enumerate(tables):
        calls[f"path_{number}"] = lambda table=table: run(params, images, table)
    seconds = time_interleaved(calls, repeats)
    dense_ms, *path_ms = (1e3 * np.quantile(seconds[name], (0.25, 0.5, 0.75)) for name in calls)
    latency_ms = weights @ np.stack(path_ms)

    outputs = [run(params, images, table) for table in tables]
    # The tree has one path, so its nodes are the answers in order.
    shares_drawn = weights @ np.stack(
        [np.bincount(node, minlength=ANSWERS + 1)[1:] / batch for _, node, _ in outputs]
    )
    slots = float(weights @ np.asarray([slots for *_, slots in outputs]))
    steps = batch * float(shares_drawn @ np.arange(1, ANSWERS + 1))
    macs_kept = float(shares_drawn @ cascade.macs[1:]) / cascade.spec.dense_macs
    speedup = float(dense_ms[1] / latency_ms[1])
    return CascadeSpeed(
        batch=batch,
        dtype=spec.dtype,
        chunk=chunk,
        dense_images_per_s=float(1e3 * batch / dense_ms[1]),
        images_per_s=float(1e3 * batch / latency_ms[1]),
        dense_ms=float(dense_ms[1]),
        latency_ms=float(latency_ms[1]),
        shares=tuple(map(float, shares_drawn)),
        macs_kept=macs_kept,
        speedup=speedup,
        realised_share=speedup * macs_kept,
        slots=slots,
        wasted_share=1 - steps / slots,
        path_ms=tuple(float(quartiles[1]) for quartiles in path_ms) if batch == 1 else (),
        spread=(float(latency_ms[0]), float(latency_ms[2])),
        dense_spread=(float(dense_ms[0]), float(dense_ms[2])),
    )


def save_cascade_speeds(rows: list[CascadeSpeed], header: dict[str, Any], folder: str | Path) -> None:
    """Writes benchmark.json.

    Args:
      rows: measurements.
      header: hardware, command and weights.
      folder: created if needed.

    Raises:
      UserError: the disk is full.
    """
    folder = Path(folder)
    record = {**header, "rows": [dataclasses.asdict(row) for row in rows]}
    write_atomic(folder / "benchmark.json", json.dumps(record, indent=1) + "\n")
