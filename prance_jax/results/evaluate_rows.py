"""Evaluates the rows of a run on the same images and machine; speeds are measured in turn."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import jax
import numpy as np

from prance_jax.adaptive.calibrate import collect_decisions
from prance_jax.adaptive.choose_buckets import choose_buckets
from prance_jax.adaptive.executor import serve_adaptive
from prance_jax.adaptive.predictor_executor import choose_token_buckets, collect_token_counts, serve_predictor
from prance_jax.adaptive.rounding import BucketedPolicy
from prance_jax.baselines.predictor_config import PredictorConfig
from prance_jax.evaluation.evaluate import Evaluation, compile_forward
from prance_jax.evaluation.timing import throughput
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
    elapsed: Callable[[], float],
    entries_of: Callable[[Experiment, int], list[TableEntry]] = table_entries,
) -> Iterator[Results]:
    """Evaluates all rows of a table on the test images.

    Speed is that of the program one would serve: the compact program of a static structure or of a
    schedule, adaptive execution of a selector in buckets calibrated on the validation images, and
    the same for token predictors that keep an own token count per image. Masked execution saves no
    time, so its speed is not quoted: the random policy has none.

    Args:
      experiment: the run; stages that are not there are trained first.
      command: the command line, stored with the results.
      elapsed: () -> seconds of the run so far.
      entries_of: (experiment, seed) -> the rows of a seed, 'dense' among them.

    Yields:
      The results after every seed; the last ones are complete.
    """
    rows, images = [], 0
    for seed in experiment.config.seeds:
        entries = entries_of(experiment, seed)
        experiment.progress.note(f"seed{seed}: evaluating {len(entries)} methods on the test images")
        evaluations = {entry.method: experiment.evaluate(entry, "test") for entry in entries}
        speeds = _speeds(experiment, entries)
        dense = evaluations["dense"]
        images = len(dense.correct)
        full = float(macs(entries[0].spec, entries[0].spec.largest).total)
        for entry in entries:
            evaluation = evaluations[entry.method]
            macs_kept = float(evaluation.macs.mean()) / full
            speed = speeds.get(entry.method)
            speedup = speed / speeds["dense"] if speed else None
            rows.append(
                Row(
                    method=entry.method,
                    seed=seed,
                    **_accuracy(evaluation, dense),
                    gmacs=float(evaluation.macs.mean()) / 1e9,
                    macs_kept=macs_kept,
                    tokens_left=float(evaluation.tokens_left.mean()),
                    tokens_mean=float(evaluation.tokens_mean.mean()),
                    active_params=float(evaluation.parameters.mean()),
                    images_per_s=speed,
                    speedup=speedup,
                    realised_share=speedup * macs_kept if speedup else None,
                )
            )
        yield Results(tuple(rows), images, hardware(), command, elapsed())


def _accuracy(evaluation: Evaluation, dense: Evaluation) -> dict[str, float]:
    """The figures of a row that say how right it is; with several labels no image is won or lost."""
    if evaluation.mean_ap is not None:
        return {"mean_ap": evaluation.mean_ap, "mean_ap_change": evaluation.mean_ap - dense.mean_ap}
    won, lost = won_and_lost(evaluation.correct, dense.correct)
    return {"top1": evaluation.top1, "top1_change": evaluation.top1 - dense.top1, "won": won, "lost": lost}


def _speeds(experiment: Experiment, entries: list[TableEntry]) -> dict[str, float]:
    """Images per second of each method that has a program to serve."""
    settings = experiment.config.evaluation
    images = jax.device_put(experiment.source.split("test").some(settings.batch).images)
    calibration = experiment.source.split("validation").images[: settings.calibration_images]
    key = jax.random.key(0)

    def compact(entry: TableEntry):
        run = compile_forward(entry.spec, entry.policy)
        return lambda: run(entry.params, entry.policy_params, images, key)["predicted"]

    selectors = [entry for entry in entries if isinstance(entry.policy, SelectorPolicy | BucketedPolicy)]

    @functools.cache
    def executor(params_id: int, policy: DecisionPolicy):
        """One program for all rows of one network and one selector: a budget is an argument."""
        sharing = [entry for entry in selectors if (id(entry.params), entry.policy) == (params_id, policy)]
        if isinstance(policy, BucketedPolicy):
            buckets = policy.buckets
        else:
            decisions = [
                collect_decisions(entry.spec, policy, entry.params, entry.policy_params, calibration)
                for entry in sharing
            ]
            groups = jax.tree.map(
                lambda *parts: np.concatenate(parts), *(structure.groups[1:] for structure in decisions)
            )
            all_decisions = Structure((policy.first_choice, *groups))
            buckets = choose_buckets(
                sharing[0].spec, all_decisions, settings.buckets, settings.token_multiple
            )

        def run(params, policy_params, images):
            return serve_adaptive(
                buckets, policy, params, policy_params, images, key, settings.chunk
            ).logits.argmax(-1)

        return jax.jit(run)

    def adaptive(entry: TableEntry):
        run = executor(id(entry.params), entry.policy)
        return lambda: run(entry.params, entry.policy_params, images)

    def in_token_buckets(entry: TableEntry):
        token_counts = collect_token_counts(entry.spec, entry.policy, entry.params, calibration)
        token_buckets = choose_token_buckets(
            entry.spec, token_counts, settings.buckets, settings.token_multiple
        )

        def run(params, images):
            return serve_predictor(
                entry.spec, entry.policy, token_buckets, params, images, settings.chunk
            ).logits.argmax(-1)

        run = jax.jit(run)
        return lambda: run(entry.params, images)

    own_counts = [
        entry for entry in entries if isinstance(entry.policy, PredictorConfig) and entry.policy.by_threshold
    ]
    static = [
        entry
        for entry in entries
        if isinstance(entry.policy, StaticPolicy | ScheduledReduction)
        or (isinstance(entry.policy, PredictorConfig) and not entry.policy.by_threshold)
    ]
    # Weights do not change how fast a program is: rows with the same program share a measurement.
    first = {(entry.spec, entry.policy): entry.method for entry in reversed(static)}
    programs = {
        entry.method: compact(entry) for entry in static if entry.method == first[entry.spec, entry.policy]
    }
    programs |= {entry.method: adaptive(entry) for entry in selectors}
    programs |= {entry.method: in_token_buckets(entry) for entry in own_counts}
    speeds = throughput(programs, len(images), settings.speed_seconds)
    return speeds | {entry.method: speeds[first[entry.spec, entry.policy]] for entry in static}
