"""How fast what is served really is: dense, masked, adaptive, ToMe and EViT at equal MACs, measured in one run."""

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

from prance_jax.adaptive.buckets import Plans
from prance_jax.adaptive.choose_buckets import even_plans
from prance_jax.adaptive.executor import serve
from prance_jax.core.files import write_atomic
from prance_jax.core.timing import interleaved
from prance_jax.models.forward import walk
from prance_jax.models.reduction import at_macs, reduced, reduced_macs
from prance_jax.models.vit import ViT
from prance_jax.results.rows import Speed
from prance_jax.selector.policies import GivenRule, Priced, Rule
from prance_jax.serving.model import AdaptiveModel
from prance_jax.spec.macs import macs
from prance_jax.spec.structure import GroupChoice, Structure
from prance_jax.tokens.token_set import rate_for

Tree = Any


def even_spread(plans: Plans, batch: int, seed: int = 0) -> Structure:
    """A structure per image: equally many images on each plan, every group in an order of its own.

    Images take the same level in all groups half of the time (what is easy stays easy) and any level otherwise.
    """
    rng, spec = np.random.default_rng(seed), plans.spec
    levels = rng.permutation(np.arange(batch))
    stay = rng.random(batch) < 0.5
    count, groups = np.full(batch, spec.tokens), [plans.first]
    for group in plans.groups:
        own = np.where(stay, levels, rng.permutation(levels)) % len(group)
        chosen = [group[level] for level in own]
        wanted = np.minimum([plan.tokens for plan in chosen], count[:, None])
        rates = []
        for left in wanted.T:
            rates.append(rate_for(left, count))
            count = np.asarray(spec.left(count, rates[-1:])[0])
        sizes = [
            tuple(
                jnp.asarray([getattr(plan, name)[layer] for plan in chosen], jnp.int32)
                for layer in range(size)
            )
            for name in ("widths", "hidden")
            for size in [len(group[0].widths)]
        ]
        groups.append(GroupChoice(*sizes, tuple(rates)))
    return Structure(tuple(groups))


class Work(NamedTuple):
    """What is served: images [B, S, S, C] and what decides about them; macs_kept: mean share of dense MACs."""

    images: jax.Array
    rule: Rule
    variables: Any
    macs_kept: float


def even_work(plans: Plans, batch: int) -> Work:
    """Random images with `even_spread`."""
    structure = even_spread(plans, batch)
    return Work(_noise(plans, batch), GivenRule(plans.first), structure, _kept(plans, structure))


def trained_work(model: AdaptiveModel, images: np.ndarray, batch: int, budget: float | None = None) -> Work:
    """Images of a data set, again and again where the batch is larger, under the decisions of a trained selector."""
    images = jnp.asarray(images[np.arange(batch) % len(images)])
    found = macs(model.spec, model.serve(images, budget).structure, model.decision_cost).total
    kept = float(np.mean(found)) / macs(model.spec, model.spec.largest).total
    policy = model.policy if budget is None else Priced(model.policy, model.ladder.price(budget))
    return Work(images, model.rule, policy, kept)


def measure(
    plans: Plans,
    params: Tree,
    *,
    work: Callable[[int], Work],
    batches: tuple[int, ...] = (1, 8, 64, 256),
    chunk: Callable[[int], int] = lambda batch: max(1, batch // 16),
    repeats: int = 9,
) -> list[Speed]:
    """Measures dense, masked and adaptive execution, and ToMe and EViT on the dense network at schedules that come nearest
    to the adaptive one's mean MACs; at batch 1 also the worst case, an image that is given the largest plans throughout.

    plans: of the network to measure, its `spec.dtype` included; params: its weights, of any value. work: what is served,
    by batch. chunk: images that share a plan, by batch.
    """
    spec, found = plans.spec, []
    model, full = ViT(spec), float(macs(spec, spec.largest).total)
    given = GivenRule(plans.first)
    for batch in batches:
        images, rule, variables, kept = work(batch)

        def dense(params, variables, images):
            return model.apply({"params": params}, images, spec.largest)

        def masked(params, variables, images):
            decide = rule.decide(variables, jax.random.key(0))
            return walk(model, params, images, plans.first, decide).logits

        def adaptive(params, variables, images, rule=rule):
            return serve(plans, rule, params, variables, images, jax.random.key(0), chunk(batch)).logits

        arguments = params, variables, images
        runs = {"dense": dense, "masked": masked, "adaptive": adaptive}
        shares = {"dense": 1.0, "masked": kept, "adaptive": kept}
        for method in ("tome", "evit"):
            reduction = at_macs(spec, spec.largest, method, kept * full)
            shares[method] = reduced_macs(spec, spec.largest, reduction).total / full
            runs[method] = lambda params, variables, images, reduction=reduction: (
                reduced(model, params, images, spec.largest, reduction).logits
            )
        programs = {name: jax.jit(run).lower(*arguments).compile() for name, run in runs.items()}
        calls = {name: lambda run=run: run(*arguments) for name, run in programs.items()}
        if batch == 1:
            largest = _largest(plans)
            run = jax.jit(functools.partial(adaptive, rule=given)).lower(params, largest, images).compile()
            programs["largest"], shares["largest"] = run, _kept(plans, largest)
            calls["largest"] = lambda run=run: run(params, largest, images)
        taken = interleaved(calls, repeats)
        usual = float(np.median(taken["dense"]))
        for name, times in taken.items():
            middle = float(np.median(times))
            share = shares[name]
            found.append(
                Speed(
                    method=name,
                    batch=batch,
                    dtype=spec.dtype,
                    images_per_s=batch / middle,
                    latency_ms=1e3 * middle,
                    macs_kept=share,
                    speedup=usual / middle,
                    realised_share=usual / middle * share,
                    spread=tuple(float(1e3 * q) for q in np.quantile(times, (0.25, 0.75))),
                    peak_mb=_peak(programs[name]),
                )
            )
    return found


def _noise(plans: Plans, batch: int) -> jax.Array:
    spec = plans.spec
    return jax.random.normal(jax.random.key(1), (batch, spec.image_size, spec.image_size, spec.channels))


def _kept(plans: Plans, structure: Structure) -> float:
    return float(np.mean(macs(plans.spec, structure).total)) / macs(plans.spec, plans.spec.largest).total


def _largest(plans: Plans) -> Structure:
    """One image on the largest plan of every group, nothing removed that the plan has room for."""
    count, groups = plans.spec.tokens, [plans.first]
    for group in plans.groups:
        plan, rates = group[-1], []
        for left in plan.tokens:
            left = min(left, count)
            rates.append(jnp.asarray([rate_for(left, count)], jnp.float32))
            count = left
        sizes = [tuple(jnp.asarray([size], jnp.int32) for size in own) for own in (plan.widths, plan.hidden)]
        groups.append(GroupChoice(*sizes, tuple(rates)))
    return Structure(tuple(groups))


def random_weights_plans(spec, first: GroupChoice, number: int = 4, smallest_keep: float = 0.2) -> Plans:
    """The stated spread of plans for a network without a trained selector, see `even_plans`."""
    return even_plans(spec, first, number, smallest_keep)


def with_dtype(plans: Plans, dtype: str) -> Plans:
    """The same plans for a network that computes in another type."""
    return dataclasses.replace(plans, spec=dataclasses.replace(plans.spec, dtype=dtype))


def save(rows: list[Speed], header: dict[str, Any], folder: str | Path, plans: Plans) -> None:
    """Writes benchmark.json, and benchmark.csv with timm's column names."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
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
    full = macs(plans.spec, plans.spec.largest).total / 1e9
    for row in rows:
        values = (
            f"{plans.spec.space.name}_{row.method}_{row.dtype}",
            round(row.images_per_s, 2),
            round(row.latency_ms, 3),
            row.batch,
            plans.spec.image_size,
            round(full * row.macs_kept, 3),
        )
        table.writerow(dict(zip(names, values)))
    write_atomic(folder / "benchmark.csv", text.getvalue())


def _peak(program) -> float | None:
    try:
        memory = program.memory_analysis()
        return (
            memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
        ) / 2**20
    except (AttributeError, NotImplementedError, jax.errors.JaxRuntimeError):
        return None
