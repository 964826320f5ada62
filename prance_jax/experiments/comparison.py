"""The rows of the compare command: every method and PRANCE at the same MACs or measured time."""

from __future__ import annotations

import dataclasses
from typing import Any

from prance_jax.baselines.channel_gates import gate_share_at_macs
from prance_jax.baselines.channel_removal import remove_channels
from prance_jax.baselines.predictor_config import PredictorConfig
from prance_jax.config.comparison import DIFFRATE_LEARNED, MCTF_CONSISTENT, SPVIT_INSERTED
from prance_jax.data.source import check_one_label
from prance_jax.experiments.experiment import Experiment
from prance_jax.experiments.insertion import Insertion
from prance_jax.experiments.stage_runner import TableEntry, budget_suffix
from prance_jax.experiments.targets import Target, predictor_heads
from prance_jax.models.reduction import METHODS, ScheduledReduction, reduction_at_macs
from prance_jax.selector.policies import StaticPolicy
from prance_jax.spec.block_latency import LatencyTargetError, load_block_latency
from prance_jax.spec.macs import macs
from prance_jax.training.stages import channel_pruning, diffrate_counts


def comparison_rows(experiment: Experiment, seed: int) -> list[TableEntry]:
    """Returns all rows of the compare command for one seed.

    First the dense network, then every method at every share, then PRANCE, whose network and
    selector have their own three stages. A method that cannot reach a share has no row there; a
    note gives the reason.

    Args:
      experiment: the run.
      seed: of the run.
    """
    check_one_label(experiment.source, "the command compare")
    spec, config = experiment.spec(experiment.config.token_modes[0]), experiment.config.compare
    table = None if config.latency_table is None else load_block_latency(config.latency_table, spec)
    trains = config.finetune.steps > 0
    entries = [TableEntry("dense", spec, experiment.largest, experiment.dense(seed), ())]
    if trains:
        params = experiment.finetuned_baseline(seed, "dense", None)
        entries.append(TableEntry("dense_tuned", spec, experiment.largest, params, ()))
    insertion = Insertion(experiment, seed) if trains and SPVIT_INSERTED in config.methods else None
    for target in (Target(spec, share, table) for share in config.shares):
        for name in config.methods:
            try:
                entries.extend(method_rows(experiment, seed, name, target, insertion))
            except LatencyTargetError as error:
                experiment.progress.note(f"{name}{target.label}: no row, {error}")
    for mode in experiment.config.token_modes if config.token_modes is None else config.token_modes:
        entries.extend(
            experiment.at_budgets(seed, mode)
            if experiment.config.budgets
            else [experiment.prance(seed, mode)]
        )
    return entries


def method_rows(
    experiment: Experiment, seed: int, name: str, target: Target, insertion: Insertion | None
) -> list[TableEntry]:
    """Returns the rows of a method at a target: without training if it needs none, and fine-tuned.

    Args:
      experiment: the run.
      seed: of the run.
      name: one of `compare.methods`.
      target: MACs or time.
      insertion: of this seed, for 'spvit_inserted'.

    Raises:
      LatencyTargetError: the method cannot reach the target.
    """
    spec, config = target.spec, experiment.config.compare
    trains, label = config.finetune.steps > 0, target.label
    if name in METHODS or name == DIFFRATE_LEARNED:
        reduction = (
            learned_counts(experiment, seed, target) if name == DIFFRATE_LEARNED else target.reduction(name)
        )
        entries = [TableEntry(name + label, spec, reduction, experiment.dense(seed), ())]
        if trains:
            params = experiment.finetuned_baseline(seed, name + label, reduction)
            entries.append(TableEntry(f"{name}_tuned{label}", spec, reduction, params, ()))
        return entries
    if not trains:
        return []
    if name == SPVIT_INSERTED:
        return insertion_rows(experiment, target, insertion)
    if name == MCTF_CONSISTENT:
        reduction = target.reduction("mctf")
        params = experiment.finetuned_baseline(seed, name + label, reduction, consistent=True)
        return [TableEntry(f"{name}_tuned{label}", spec, reduction, params, ())]
    if name in ("cdcp", "cait_cdcp"):
        if target.table is not None:
            raise LatencyTargetError("tables of block latencies do not cover pruned channels")
        return [channel_pruning_row(experiment, seed, name, target.share)]
    predictor = target.predictor(name == "spvit", predictor_heads(spec, name, config))
    params = experiment.finetuned_baseline(seed, name + label, predictor)
    return predictor_rows(name, target, predictor, params)


def channel_pruning_row(experiment: Experiment, seed: int, name: str, share: float) -> TableEntry:
    """Returns the dense network whose channels are pruned during fine-tuning, then removed.

    Args:
      experiment: the run.
      seed: of the run.
      name: 'cdcp', or 'cait_cdcp': then tokens are merged to the square root of `share`, and
        channels do the rest.
      share: of the dense network's MACs.
    """
    spec = experiment.spec(experiment.config.token_modes[0])
    config, teacher = experiment.config.compare, experiment.dense(seed)
    reduction = None
    if name == "cait_cdcp":
        reduction = reduction_at_macs(spec, spec.largest, "cait", share**0.5 * macs(spec, spec.largest).total)
    keep = gate_share_at_macs(spec, share, reduction)
    state = experiment.train_stage(
        f"seed{seed}/compare/{name}{budget_suffix(share)}",
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
    return TableEntry(f"{name}_tuned{budget_suffix(share)}", small, policy, params, ())


def learned_counts(experiment: Experiment, seed: int, target: Target) -> ScheduledReduction:
    """Returns DiffRate's schedule with token counts learned on the dense network.

    Args:
      experiment: the run.
      seed: of the run.
      target: in MACs.

    Raises:
      LatencyTargetError: the target is a time, or there is no layer to learn for.
    """
    if target.table is not None:
        raise LatencyTargetError("its counts are learned for multiply-accumulates")
    config, spec, key = experiment.config.compare.counts, target.spec, experiment.key(seed, "tune")
    if not diffrate_counts.make_learned_counts(spec, config).layers:
        raise LatencyTargetError(f"there is no layer to learn for from layer {config.first} to the last")
    state = experiment.train_stage(
        f"seed{seed}/compare/{DIFFRATE_LEARNED}_counts{target.label}",
        config.steps,
        lambda: diffrate_counts.init_diffrate_counts(spec, target.share, config),
        diffrate_counts.counts_step(spec, config, target.share, experiment.source.sample, experiment.mesh),
        config.batch,
        (key, experiment.dense(seed)),
        ("loss", "accuracy", "macs_kept"),
    )
    return diffrate_counts.best_counts(spec, config, state["ema"]["logits"])


def insertion_rows(experiment: Experiment, target: Target, insertion: Insertion) -> list[TableEntry]:
    """Returns SPViT with its token predictors where progressive insertion puts them.

    Insertion may end before the target, or without any predictor; a note says so.

    Args:
      experiment: the run.
      target: MACs or time.
      insertion: of one seed.
    """
    result, name, note = insertion.run(target), SPVIT_INSERTED + target.label, experiment.progress.note
    if result is None:
        note(f"{name}: a predictor before the last layer already costs too much accuracy; no row")
        return []
    predictor, params = result
    if not target.met(predictor):
        note(f"{name}: its row is above the target; predictors before earlier layers cost too much accuracy")
    return predictor_rows(SPVIT_INSERTED, target, predictor, params)


def predictor_rows(name: str, target: Target, predictor: PredictorConfig, params: Any) -> list[TableEntry]:
    """Returns two rows of trained token predictors: one token count for all, and one per image.

    Args:
      name: of the method.
      target: MACs or time.
      predictor: where the predictors stand and what they keep.
      params: of the network and the predictors.
    """
    by_threshold = dataclasses.replace(predictor, by_threshold=True)
    return [
        TableEntry(f"{name}_tuned{target.label}", target.spec, predictor, params, ()),
        TableEntry(f"{name}_free{target.label}", target.spec, by_threshold, params, ()),
    ]
