"""The compare command's rows: every method of the field beside PRANCE, as it is and tuned, at the same MACs, or in the same
measured time."""

from __future__ import annotations

import dataclasses
from typing import Any

from prance_jax.baselines.channel_gates import macs_of_gates
from prance_jax.baselines.channel_removal import remove_channels
from prance_jax.baselines.predictor_config import PredictorConfig
from prance_jax.config.comparison import CONSISTENT, COUNTED, INSERTED
from prance_jax.experiments.experiment import Experiment
from prance_jax.experiments.insertion import Insertion
from prance_jax.experiments.stage_runner import TableEntry, percent
from prance_jax.experiments.targets import Target, heads_of
from prance_jax.models.reduction import METHODS, ScheduledReduction, at_macs
from prance_jax.selector.policies import StaticPolicy
from prance_jax.spec.block_latency import OutOfReach, load_block_latency
from prance_jax.spec.macs import macs
from prance_jax.training.stages import channel_pruning, diffrate_counts


def channel_pruning_row(experiment: Experiment, seed: int, name: str, share: float) -> TableEntry:
    """The dense network with channels pruned while it is tuned, then removed; with 'cait_cdcp' tokens are merged to
    the square root of `share` and channels do the rest."""
    spec, config, teacher = (
        experiment.spec(experiment.config.token_modes[0]),
        experiment.config.compare,
        experiment.dense(seed),
    )
    reduction = None
    if name == "cait_cdcp":
        reduction = at_macs(spec, spec.largest, "cait", share**0.5 * macs(spec, spec.largest).total)
    keep = macs_of_gates(spec, share, reduction)
    state = experiment.train_stage(
        f"seed{seed}/compare/{name}{percent(share)}",
        config.finetune.steps,
        lambda: channel_pruning.init_channel_pruning(spec, teacher, config.finetune),
        channel_pruning.prune_step(
            spec, config.finetune, config.prune, keep, reduction, experiment.source.sample, experiment.mesh
        ),
        config.finetune.batch,
        (experiment.key(seed, "tune"), teacher),
        ("loss", "accuracy", "open"),
    )
    small, params = remove_channels(spec, state["ema"], state["gates"])
    policy = StaticPolicy(small.largest) if reduction is None else reduction
    return TableEntry(f"{name}_tuned{percent(share)}", small, policy, params, ())


def learned_counts(experiment: Experiment, seed: int, target: Target) -> ScheduledReduction:
    """DiffRate with the counts that are best for the dense network, learned. Raises OutOfReach."""
    if target.table is not None:
        raise OutOfReach("its counts are learned for multiply-accumulates")
    config, spec, key = experiment.config.compare.counts, target.spec, experiment.key(seed, "tune")
    if not diffrate_counts.make_learned_counts(spec, config).layers:
        raise OutOfReach(f"from layer {config.first} to the last there is none to learn for")
    state = experiment.train_stage(
        f"seed{seed}/compare/{COUNTED}_counts{target.label}",
        config.steps,
        lambda: diffrate_counts.init_diffrate_counts(spec, target.share, config),
        diffrate_counts.counts_step(spec, config, target.share, experiment.source.sample, experiment.mesh),
        config.batch,
        (key, experiment.dense(seed)),
        ("loss", "accuracy", "macs_kept"),
    )
    return diffrate_counts.best_counts(spec, config, state["ema"]["logits"])


def insertion_rows(experiment: Experiment, target: Target, insertion: Insertion) -> list[TableEntry]:
    """SPViT's selectors where progressive insertion puts them; it may end before the target, and says so."""
    found, name, note = insertion.run(target), INSERTED + target.label, experiment.progress.note
    if found is None:
        note(f"{name}: not even the last layer bears a selector; no row")
        return []
    if not target.met(found[0]):
        note(f"{name}: its row is above the target; the layers further in front bear no selector")
    return predictor_rows(INSERTED, target, *found)


def predictor_rows(name: str, target: Target, what: PredictorConfig, params: Any) -> list[TableEntry]:
    """The rows of tuned selectors: so many tokens of every image, and as many as each needs."""
    free = dataclasses.replace(what, by_threshold=True)
    return [
        TableEntry(f"{name}_tuned{target.label}", target.spec, what, params, ()),
        TableEntry(f"{name}_free{target.label}", target.spec, free, params, ()),
    ]


def method_rows(
    experiment: Experiment, seed: int, name: str, target: Target, insertion: Insertion | None
) -> list[TableEntry]:
    """A method at a target, as it is and tuned. Raises OutOfReach."""
    spec, config = target.spec, experiment.config.compare
    tunes, label = config.finetune.steps > 0, target.label
    if name in METHODS or name == COUNTED:
        what = learned_counts(experiment, seed, target) if name == COUNTED else target.reduction(name)
        rows = [TableEntry(name + label, spec, what, experiment.dense(seed), ())]
        if tunes:
            params = experiment.tuned(seed, name + label, what)
            rows.append(TableEntry(f"{name}_tuned{label}", spec, what, params, ()))
        return rows
    if not tunes:
        return []
    if name == INSERTED:
        return insertion_rows(experiment, target, insertion)
    if name == CONSISTENT:
        what = target.reduction("mctf")
        params = experiment.tuned(seed, name + label, what, consistent=True)
        return [TableEntry(f"{name}_tuned{label}", spec, what, params, ())]
    if name in ("cdcp", "cait_cdcp"):
        if target.table is not None:
            raise OutOfReach("tables of block latencies know nothing of pruned channels")
        return [channel_pruning_row(experiment, seed, name, target.share)]
    what = target.predictor(name == "spvit", heads_of(spec, name, config))
    return predictor_rows(name, target, what, experiment.tuned(seed, name + label, what))


def comparison_rows(experiment: Experiment, seed: int) -> list[TableEntry]:
    """All rows of the compare command: every method at every share, as it is and tuned; then PRANCE, whose network and
    selector are trained in their own three stages."""
    spec, config = experiment.spec(experiment.config.token_modes[0]), experiment.config.compare
    table = None if config.latency_table is None else load_block_latency(config.latency_table, spec)
    tunes = config.finetune.steps > 0
    rows = [TableEntry("dense", spec, experiment.largest, experiment.dense(seed), ())]
    if tunes:
        rows.append(
            TableEntry("dense_tuned", spec, experiment.largest, experiment.tuned(seed, "dense", None), ())
        )
    insertion = Insertion(experiment, seed) if tunes and INSERTED in config.methods else None
    for target in (Target(spec, share, table) for share in config.shares):
        for name in config.methods:
            try:
                rows.extend(method_rows(experiment, seed, name, target, insertion))
            except OutOfReach as error:
                experiment.progress.note(f"{name}{target.label}: no row, {error}")
    for mode in experiment.config.token_modes if config.token_modes is None else config.token_modes:
        rows.extend(
            experiment.at_budgets(seed, mode)
            if experiment.config.budgets
            else [experiment.prance(seed, mode)]
        )
    return rows
