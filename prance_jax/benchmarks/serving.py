"""The speed of serving: dense, masked and adaptive execution, ToMe and EViT at equal MACs."""

from __future__ import annotations

import csv
import dataclasses
import functools
import io
import json
from pathlib import Path
from typing import Any, Callable, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from prance_jax.adaptive.buckets import Buckets
from prance_jax.adaptive.executor import serve_adaptive
from prance_jax.core.files import write_atomic
from prance_jax.evaluation.timing import time_interleaved
from prance_jax.models.forward import forward_adaptive
from prance_jax.models.reduction import forward_reduced, reduction_at_macs, scheduled_macs
from prance_jax.models.vit import ViT
from prance_jax.results.rows import Speed
from prance_jax.selector.policies import DecisionPolicy, GivenPolicy, PolicyWithCost
from prance_jax.serving.model import AdaptiveModel
from prance_jax.spec.macs import macs
from prance_jax.spec.structure import GroupChoice, Structure
from prance_jax.tokens.token_set import keep_rate_for

Tree = Any


def even_spread(buckets: Buckets, batch: int, seed: int = 0) -> Structure:
    """Returns a structure per image: in each group equally many images in each bucket.

    Half of the images have the same bucket in all groups (an easy image stays easy), the others a
    random one in each.

    Args:
      buckets: of the network.
      batch: number of images.
      seed: of the assignment.
    """
    rng, spec = np.random.default_rng(seed), buckets.spec
    order = rng.permutation(np.arange(batch))
    stays = rng.random(batch) < 0.5
    count, groups = np.full(batch, spec.tokens), [buckets.first_choice]
    for group in buckets.groups:
        indices = np.where(stays, order, rng.permutation(order)) % len(group)
        chosen = [group[index] for index in indices]
        num_keep = np.minimum([bucket.tokens for bucket in chosen], count[:, None])
        rates = []
        for tokens_after in num_keep.T:
            rates.append(keep_rate_for(tokens_after, count))
            count = np.asarray(spec.tokens_after(count, rates[-1:])[0])
        sizes = [
            tuple(
                jnp.asarray([getattr(bucket, name)[layer] for bucket in chosen], jnp.int32)
                for layer in range(size)
            )
            for name in ("widths", "mlp_dims")
            for size in [len(group[0].widths)]
        ]
        groups.append(GroupChoice(*sizes, tuple(rates)))
    return Structure(tuple(groups))


class Work(NamedTuple):
    """What is served.

    Attributes:
      images: float [B, S, S, channels].
      policy: takes the decisions.
      policy_params: what the policy decides by.
      macs_kept: mean MACs as a share of the dense MACs.
    """

    images: jax.Array
    policy: DecisionPolicy
    policy_params: Any
    macs_kept: float


def even_work(buckets: Buckets, batch: int) -> Work:
    """Returns random images with the structures of `even_spread`.

    Args:
      buckets: of the network.
      batch: number of images.
    """
    structure = even_spread(buckets, batch)
    return Work(
        _noise(buckets, batch), GivenPolicy(buckets.first_choice), structure, _kept(buckets, structure)
    )


def trained_work(model: AdaptiveModel, images: np.ndarray, batch: int, budget: float | None = None) -> Work:
    """Returns images of a data set under the decisions of a trained selector.

    Args:
      model: the trained network and selector.
      images: [N, S, S, channels]; repeated for a larger batch.
      batch: number of images.
      budget: share of the dense MACs; None for a selector of one budget.
    """
    images = jnp.asarray(images[np.arange(batch) % len(images)])
    total = macs(model.spec, model.serve(images, budget).structure, model.decision_cost).total
    kept = float(np.mean(total)) / macs(model.spec, model.spec.largest).total
    policy_params = (
        model.policy_params
        if budget is None
        else PolicyWithCost(model.policy_params, model.budget_table.cost_weight(budget))
    )
    return Work(images, model.policy, policy_params, kept)


def measure_serving(
    buckets: Buckets,
    params: Tree,
    *,
    work: Callable[[int], Work],
    batches: tuple[int, ...] = (1, 8, 64, 256),
    chunk: Callable[[int], int] = lambda batch: max(1, batch // 16),
    repeats: int = 9,
) -> list[Speed]:
    """Measures dense, masked and adaptive execution, and ToMe and EViT on the dense network.

    Their schedules come nearest to the mean MACs of the adaptive execution. At batch 1 there is
    also the worst case `largest`: an image in the largest bucket of every group.

    Args:
      buckets: of the network to measure, its `spec.dtype` included.
      params: of the network; their values do not matter.
      work: batch size -> what is served.
      batches: batch sizes.
      chunk: batch size -> images that share a bucket.
      repeats: interleaved repeats, of which medians are taken.
    """
    spec, rows = buckets.spec, []
    model, full = ViT(spec), float(macs(spec, spec.largest).total)
    given = GivenPolicy(buckets.first_choice)
    for batch in batches:
        images, policy, policy_params, kept = work(batch)

        def dense(params, policy_params, images):
            return model.apply({"params": params}, images, spec.largest)

        def masked(params, policy_params, images):
            decide = policy.decide(policy_params, jax.random.key(0))
            return forward_adaptive(model, params, images, buckets.first_choice, decide).logits

        def adaptive(params, policy_params, images, policy=policy):
            return serve_adaptive(
                buckets, policy, params, policy_params, images, jax.random.key(0), chunk(batch)
            ).logits

        arguments = params, policy_params, images
        runs = {"dense": dense, "masked": masked, "adaptive": adaptive}
        shares = {"dense": 1.0, "masked": kept, "adaptive": kept}
        for method in ("tome", "evit"):
            reduction = reduction_at_macs(spec, spec.largest, method, kept * full)
            shares[method] = scheduled_macs(spec, spec.largest, reduction).total / full
            runs[method] = lambda params, policy_params, images, reduction=reduction: (
                forward_reduced(model, params, images, spec.largest, reduction).logits
            )
        programs = {name: jax.jit(run).lower(*arguments).compile() for name, run in runs.items()}
        calls = {name: lambda run=run: run(*arguments) for name, run in programs.items()}
        if batch == 1:
            largest = _largest(buckets)
            run = jax.jit(functools.partial(adaptive, policy=given)).lower(params, largest, images).compile()
            programs["largest"], shares["largest"] = run, _kept(buckets, largest)
            calls["largest"] = lambda run=run: run(params, largest, images)
        seconds = time_interleaved(calls, repeats)
        dense_median = float(np.median(seconds["dense"]))
        for name, times in seconds.items():
            median = float(np.median(times))
            share = shares[name]
            rows.append(
                Speed(
                    method=name,
                    batch=batch,
                    dtype=spec.dtype,
                    images_per_s=batch / median,
                    latency_ms=1e3 * median,
                    macs_kept=share,
                    speedup=dense_median / median,
                    realised_share=dense_median / median * share,
                    spread=tuple(float(1e3 * q) for q in np.quantile(times, (0.25, 0.75))),
                    peak_mb=peak_memory(programs[name]),
                )
            )
    return rows


def _noise(buckets: Buckets, batch: int) -> jax.Array:
    spec = buckets.spec
    return jax.random.normal(jax.random.key(1), (batch, *spec.image_shape), dtype=jnp.float32)


def _kept(buckets: Buckets, structure: Structure) -> float:
    """Mean MACs of a structure as a share of the dense MACs."""
    return (
        float(np.mean(macs(buckets.spec, structure).total)) / macs(buckets.spec, buckets.spec.largest).total
    )


def _largest(buckets: Buckets) -> Structure:
    """One image in the largest bucket of every group, with as many tokens as the bucket holds."""
    count, groups = buckets.spec.tokens, [buckets.first_choice]
    for group in buckets.groups:
        bucket, rates = group[-1], []
        for tokens_after in bucket.tokens:
            tokens_after = min(tokens_after, count)
            rates.append(jnp.asarray([keep_rate_for(tokens_after, count)], jnp.float32))
            count = tokens_after
        sizes = [
            tuple(jnp.asarray([size], jnp.int32) for size in sizes)
            for sizes in (bucket.widths, bucket.mlp_dims)
        ]
        groups.append(GroupChoice(*sizes, tuple(rates)))
    return Structure(tuple(groups))


def with_dtype(buckets: Buckets, dtype: str) -> Buckets:
    """Returns the same buckets for a network that computes in another type.

    Args:
      buckets: of the network.
      dtype: for example 'bfloat16'.
    """
    return dataclasses.replace(buckets, spec=dataclasses.replace(buckets.spec, dtype=dtype))


def save_speeds(rows: list[Speed], header: dict[str, Any], folder: str | Path, buckets: Buckets) -> None:
    """Writes benchmark.json, and benchmark.csv with timm's column names.

    Args:
      rows: measurements.
      header: hardware, command and weights, stored in the JSON file.
      folder: created if needed.
      buckets: of the network that was measured.

    Raises:
      UserError: the disk is full.
    """
    folder = Path(folder)
    record = {**header, "rows": [dataclasses.asdict(row) for row in rows]}
    write_atomic(folder / "benchmark.json", json.dumps(record, indent=1) + "\n")
    text = io.StringIO()
    names = [
        "model",
        "infer_samples_per_sec",
        "infer_step_time",
        "infer_batch_size",
        "infer_img_size",
        "infer_gmacs",
    ]
    table = csv.DictWriter(text, names)
    table.writeheader()
    full = macs(buckets.spec, buckets.spec.largest).total / 1e9
    for row in rows:
        values = (
            f"{buckets.spec.space.name}_{row.method}_{row.dtype}",
            round(row.images_per_s, 2),
            round(row.latency_ms, 3),
            row.batch,
            buckets.spec.image_size,
            round(full * row.macs_kept, 3),
        )
        table.writerow(dict(zip(names, values)))
    write_atomic(folder / "benchmark.csv", text.getvalue())


def peak_memory(program: jax.stages.Compiled) -> float | None:
    """Returns the memory of a program by the compiler's own analysis, MiB; None where there is none.

    Args:
      program: the compiled program.
    """
    try:
        memory = program.memory_analysis()
        return (
            memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
        ) / 2**20
    except (AttributeError, NotImplementedError, jax.errors.JaxRuntimeError):
        return None
