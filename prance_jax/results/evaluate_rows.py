"""The comparison of a run: every row on the same images, batch and machine, speeds measured in turn."""

from __future__ import annotations

import functools
from typing import Callable, Iterator

import jax
import numpy as np

from prance_jax.adaptive.calibrate import collect_decisions
from prance_jax.adaptive.choose_buckets import choose_buckets
from prance_jax.adaptive.executor import serve_adaptive
from prance_jax.adaptive.predictor_executor import choose_token_buckets, collect_token_counts, serve_predictor
from prance_jax.adaptive.rounding import BucketedPolicy
from prance_jax.baselines.predictor_config import PredictorConfig
from prance_jax.core.timing import throughput
from prance_jax.evaluation.evaluate import compile_forward
from prance_jax.experiments.experiment import Experiment
from prance_jax.experiments.main_table import table_entries
from prance_jax.experiments.stage_runner import TableEntry
from prance_jax.models.reduction import ScheduledReduction
from prance_jax.results.rows import Results, Row
from prance_jax.results.significance import won_and_lost
from prance_jax.results.table import hardware
from prance_jax.selector.policies import DecisionPolicy, SelectorPolicy, StaticPolicy
from prance_jax.spec.macs import macs
from prance_jax.spec.structure import Structure


def evaluate_rows(
    experiment: Experiment,
    command: str,
    spent: Callable[[], float],
    table_entries: Callable[[Experiment, int], list[TableEntry]] = table_entries,
) -> Iterator[Results]:
    """Evaluates all rows on the test images: yields the results after every seed, the last ones being complete.

    spent: gives the seconds of the run so far. contenders: (experiment, seed) -> the rows of a seed, 'dense' among them.

    Speed is that of what would be served: the compact program of a static structure, the adaptive executor for a
    selector, with plans calibrated on the validation images; the same for selectors of tokens that keep a number of their own
    of every image, with levels. Masked execution saves no time and is not quoted: the random policy, which nobody would serve,
    has no speed.
    """
    rows, images = [], 0
    for seed in experiment.config.seeds:
        found_rows = table_entries(experiment, seed)
        experiment.progress.note(f"seed{seed}: evaluating {len(found_rows)} methods on the test images")
        evaluations = {row.method: experiment.evaluate(row, "test") for row in found_rows}
        speeds = _speeds(experiment, found_rows)
        dense = evaluations["dense"]
        images = len(dense.correct)
        full = float(macs(found_rows[0].spec, found_rows[0].spec.largest).total)
        for row in found_rows:
            found = evaluations[row.method]
            kept = float(found.macs.mean()) / full
            won, lost = won_and_lost(found.correct, dense.correct)
            speed = speeds.get(row.method)
            speedup = speed / speeds["dense"] if speed else None
            rows.append(
                Row(
                    method=row.method,
                    seed=seed,
                    top1=found.top1,
                    top1_change=found.top1 - dense.top1,
                    gmacs=float(found.macs.mean()) / 1e9,
                    macs_kept=kept,
                    tokens_left=float(found.tokens_left.mean()),
                    tokens_mean=float(found.tokens_mean.mean()),
                    active_params=float(found.parameters.mean()),
                    images_per_s=speed,
                    speedup=speedup,
                    realised_share=speedup * kept if speedup else None,
                    won=won,
                    lost=lost,
                )
            )
        yield Results(tuple(rows), images, hardware(), command, spent())


def _speeds(experiment: Experiment, table_entries: list[TableEntry]) -> dict[str, float]:
    settings = experiment.config.evaluation
    images = jax.device_put(experiment.source.split("test").some(settings.batch).images)
    calibration = experiment.source.split("validation").images[: settings.calibration_images]
    key = jax.random.key(0)

    def compact(row: TableEntry):
        run = compile_forward(row.spec, row.policy)
        return lambda: run(row.params, row.policy_params, images, key)["predicted"]

    served = [row for row in table_entries if isinstance(row.policy, SelectorPolicy | BucketedPolicy)]

    @functools.cache
    def executor(params: int, policy: DecisionPolicy):
        """One program for all rows of one network and one selector: a budget is an argument."""
        rows = [row for row in served if (id(row.params), row.policy) == (params, policy)]
        if isinstance(policy, BucketedPolicy):
            buckets = policy.buckets
        else:
            each = [
                collect_decisions(row.spec, policy, row.params, row.policy_params, calibration)
                for row in rows
            ]
            groups = jax.tree.map(lambda *parts: np.concatenate(parts), *(one.groups[1:] for one in each))
            together = Structure((policy.first_choice, *groups))
            buckets = choose_buckets(rows[0].spec, together, settings.buckets, settings.token_multiple)

        def run(params, policy_params, images):
            return serve_adaptive(
                buckets, policy, params, policy_params, images, key, settings.chunk
            ).logits.argmax(-1)

        return jax.jit(run)

    def adaptive(row: TableEntry):
        run = executor(id(row.params), row.policy)
        return lambda: run(row.params, row.policy_params, images)

    def at_levels(row: TableEntry):
        images_left = collect_token_counts(row.spec, row.policy, row.params, calibration)
        token_buckets = choose_token_buckets(row.spec, images_left, settings.buckets, settings.token_multiple)

        def run(params, images):
            return serve_predictor(
                row.spec, row.policy, token_buckets, params, images, settings.chunk
            ).logits.argmax(-1)

        run = jax.jit(run)
        return lambda: run(row.params, images)

    free = [
        row for row in table_entries if isinstance(row.policy, PredictorConfig) and row.policy.by_threshold
    ]
    static = [
        row
        for row in table_entries
        if isinstance(row.policy, StaticPolicy | ScheduledReduction)
        or (isinstance(row.policy, PredictorConfig) and not row.policy.by_threshold)
    ]
    # Weights do not change how fast a program is: what is tuned and what is not share a measurement.
    first = {(row.spec, row.policy): row.method for row in reversed(static)}
    programs = {row.method: compact(row) for row in static if row.method == first[row.spec, row.policy]}
    programs |= {row.method: adaptive(row) for row in served}
    programs |= {row.method: at_levels(row) for row in free}
    found = throughput(programs, len(images), settings.speed_seconds)
    return found | {row.method: found[first[row.spec, row.policy]] for row in static}
