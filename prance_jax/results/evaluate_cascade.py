"""Evaluates the rows of a cascade on the test images; speeds are those of the programs one would serve."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
import optax

from prance_jax.cascade.executor import serve_cascade
from prance_jax.cascade.forward import forward_path
from prance_jax.cascade.policies import SelectorDecisions, confidence_decisions
from prance_jax.cascade.routing import ConfidenceRule
from prance_jax.evaluation.evaluate import compile_forward
from prance_jax.evaluation.timing import throughput
from prance_jax.experiments.cascade.rows import CascadeRow, cascade_rows, method_entries
from prance_jax.experiments.cascade.stages import CascadeStages
from prance_jax.experiments.stage_runner import TableEntry
from prance_jax.models.vit import ViT
from prance_jax.results.rows import ExitShare, Results, Row
from prance_jax.results.significance import won_and_lost
from prance_jax.results.table import hardware
from prance_jax.spec.model_spec import ModelSpec


def evaluate_cascade(
    experiment: CascadeStages, command: str, elapsed: Callable[[], float]
) -> Iterator[Results]:
    """Evaluates the dense network and all rows of a cascade, seed by seed.

    The dense row that others are compared with is `dense_tuned`, fine-tuned for as many steps as the cascade.

    Args:
      experiment: the run; stages that are not there are trained first.
      command: the command line, stored with the results.
      elapsed: () -> seconds of the run so far.

    Yields:
      The results after every seed; the last ones are complete.
    """
    rows: list[Row] = []
    for seed in experiment.config.seeds:
        cascades = cascade_rows(experiment, seed)
        experiment.progress.note(f"seed{seed}: measuring speeds")
        networks = {
            "dense": experiment.dense(seed),
            "dense_tuned": experiment.finetuned_baseline(seed, "dense", None),
        }
        losses = {name: _dense_losses(experiment, params) for name, params in networks.items()}
        reference, difficulty = losses["dense_tuned"]
        entries = method_entries(experiment, seed)
        evaluations = {entry.method: experiment.evaluate(entry, "test") for entry in entries}
        speeds = _speeds(experiment, networks["dense"], cascades, entries, seed)
        full = experiment.cascade_spec.dense_macs
        for name, (correct, _) in losses.items():
            same = np.ones(len(correct))
            rows.append(_row(name, seed, correct, same, full, reference, difficulty, speeds, "dense"))
        for row in cascades:
            numbers = _row(
                row.method, seed, row.routed.correct, row.routed.cost, full, reference, difficulty, speeds
            )
            rows.append(_with_exits(numbers, row, cascades))
        for method, result in evaluations.items():
            cost = result.macs / full
            rows.append(_row(method, seed, result.correct, cost, full, reference, difficulty, speeds))
        yield Results(tuple(rows), len(reference), hardware(), command, elapsed())


def _dense_losses(experiment: CascadeStages, params) -> tuple[np.ndarray, np.ndarray]:
    """Whether the dense network is right on each test image, and its cross-entropy there."""
    spec, split = experiment.cascade_spec.dense, experiment.source.split("test")
    batch, run = experiment.config.evaluation.batch, _compiled_losses(spec)
    parts = [
        jax.device_get(run(params, split.images[start : start + batch], split.labels[start : start + batch]))
        for start in range(0, len(split.labels), batch)
    ]
    correct, loss = (np.concatenate(column) for column in zip(*parts))
    return correct, loss


@functools.lru_cache(maxsize=None)
def _compiled_losses(spec: ModelSpec) -> Callable:
    """Compiled (params, images, labels) -> correct bool [B], cross-entropy float32 [B], of the largest structure."""

    def run(params, images, labels):
        logits = ViT(spec).apply({"params": params}, images, spec.largest)
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return logits.argmax(-1) == labels, loss

    return jax.jit(run)


def _row(method, seed, correct, cost, full, reference, difficulty, speeds, measured=None) -> Row:
    """Figures that every row has."""
    from scipy.stats import spearmanr

    won, lost = won_and_lost(correct, reference)
    macs_kept, speed = float(np.mean(cost)), speeds.get(measured or method)
    speedup = speed / speeds["dense"] if speed else None
    quantiles = [float(value) for value in np.quantile(cost, (0.05, 0.5, 0.95))]
    return Row(
        method=method,
        seed=seed,
        top1=float(np.mean(correct)),
        top1_change=float(np.mean(correct) - np.mean(reference)),
        gmacs=macs_kept * full / 1e9,
        macs_kept=macs_kept,
        images_per_s=speed,
        speedup=speedup,
        realised_share=speedup * macs_kept if speedup else None,
        won=won,
        lost=lost,
        macs_p05=quantiles[0],
        macs_p50=quantiles[1],
        macs_p95=quantiles[2],
        difficulty_rho=float(spearmanr(cost, difficulty).statistic) if np.ptp(cost) > 0 else None,
    )


def _with_exits(numbers: Row, row: CascadeRow, rows: list[CascadeRow]) -> Row:
    """Adds where images stopped, and the share of the distance between random routing and oracle."""
    steps, node = row.cascade.steps, row.routed.node
    exits = []
    for look, group in sorted({(step.look, step.last_group) for step in steps}):
        here = np.isin(
            node,
            [n for n, step in enumerate(steps, start=1) if (step.look, step.last_group) == (look, group)],
        )
        if here.any():
            top1, macs_kept = row.routed.correct[here].mean(), row.routed.cost[here].mean()
            exits.append(ExitShare(look, group, float(here.mean()), float(top1), float(macs_kept)))
    _, _, budget = row.method.rpartition("_")
    top1 = {other.method: float(other.routed.correct.mean()) for other in rows}
    low, high = top1.get(f"random_routing_{budget}"), top1.get(f"oracle_{budget}")
    has_gap = row.method.startswith(("prance", "confidence")) and low is not None and high > low
    gap_won = (numbers.top1 - low) / (high - low) if has_gap else None
    correct = {other.method: other.routed.correct for other in rows}
    won, lost = won_and_lost(row.routed.correct, correct[f"best_static_finetuned_{budget}"])
    return dataclasses.replace(numbers, exits=tuple(exits), gap_won=gap_won, won_static=won, lost_static=lost)


def _speeds(
    experiment: CascadeStages, dense, cascades: list[CascadeRow], entries: list[TableEntry], seed: int
) -> dict[str, float]:
    """Images per second of the dense network, of every static structure and schedule, and of the executor."""
    settings, spec = experiment.config.evaluation, experiment.cascade_spec.dense
    images = jnp.asarray(experiment.source.split("test").some(settings.batch).images)
    run_dense = jax.jit(lambda params: ViT(spec).apply({"params": params}, images, spec.largest).argmax(-1))
    programs: dict[str, Callable[[], object]] = {"dense": lambda: run_dense(dense)}
    selectors = [row for row in cascades if row.cost_weight is not None]
    if selectors:
        cascade = selectors[0].cascade
        decisions = SelectorDecisions(cascade, experiment.table_ppo(cascade))
        policy_params = experiment.table_policy(seed, max(1, experiment.settings.rounds))

        @jax.jit
        def serve(params, policy_params, cost_weight):
            decide = decisions(policy_params, cost_weight)
            return serve_cascade(cascade, params, images, decide, settings.chunk).logits.argmax(-1)

        for row in selectors:
            programs[row.method] = lambda row=row: serve(
                row.params, policy_params, jnp.float32(row.cost_weight)
            )

    @functools.cache
    def threshold_program(cascade, path, exits):
        """One program for all thresholds on a path."""

        def serve(params, threshold):
            decide = confidence_decisions(cascade, ConfidenceRule(path, exits, threshold))
            return serve_cascade(cascade, params, images, decide, settings.chunk).logits.argmax(-1)

        return jax.jit(serve)

    for row in cascades:
        if row.rule is not None:
            run = threshold_program(row.cascade, row.rule.path, row.rule.exits)
            programs[row.method] = lambda row=row, run=run: run(row.params, jnp.float32(row.rule.threshold))
        if row.method.startswith("best_static"):
            run = jax.jit(
                lambda params, row=row: forward_path(row.cascade, params, images, 1).logits.argmax(-1)
            )
            programs[row.method] = lambda row=row, run=run: run(row.params)
    for entry in entries:
        run = compile_forward(entry.spec, entry.policy)
        programs[entry.method] = lambda entry=entry, run=run: run(
            entry.params, (), images, jax.random.key(0)
        )["predicted"]
    return throughput(programs, len(images), settings.speed_seconds)
