"""The compare command's rows: every method of the field beside PRANCE, as it is and tuned, at the same MACs."""

from __future__ import annotations

import dataclasses
from typing import Any

from prance_jax.channels.gates import keep_for
from prance_jax.channels.materialize import materialize
from prance_jax.complexity import macs
from prance_jax.models.reduced import METHODS, Reduction, at_macs
from prance_jax.models.selective import Selective, at_share
from prance_jax.selector.decide import StaticRule
from prance_jax.training import prune_channels, tune
from prance_jax.training.experiment import Contender, Experiment, percent


def tuned(experiment: Experiment, seed: int, name: str, what: Reduction | Selective | None) -> Any:
    """Parameters of the dense network tuned under a method; None: as it is."""
    spec, config, teacher = (
        experiment.spec(experiment.config.token_modes[0]),
        experiment.config.compare,
        experiment.dense(seed),
    )
    key = experiment.key(seed, "tune")
    return experiment.train_stage(
        f"seed{seed}/compare/{name}",
        config.finetune.steps,
        lambda: tune.init(spec, what, teacher, config.finetune, key),
        tune.tune_step(
            spec, config.finetune, config.selective, what, experiment.source.sample, experiment.mesh
        ),
        config.finetune.batch,
        (key, teacher),
        ("loss", "accuracy"),
    )["ema"]


def pruned(experiment: Experiment, seed: int, name: str, share: float) -> Contender:
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
    keep = keep_for(spec, share, reduction)
    state = experiment.train_stage(
        f"seed{seed}/compare/{name}{percent(share)}",
        config.finetune.steps,
        lambda: prune_channels.init(spec, teacher, config.finetune),
        prune_channels.prune_step(
            spec, config.finetune, config.prune, keep, reduction, experiment.source.sample, experiment.mesh
        ),
        config.finetune.batch,
        (experiment.key(seed, "tune"), teacher),
        ("loss", "accuracy", "open"),
    )
    small, params = materialize(spec, state["ema"], state["gates"])
    rule = StaticRule(small.largest) if reduction is None else reduction
    return Contender(f"{name}_tuned{percent(share)}", small, rule, params, ())


def comparison(experiment: Experiment, seed: int) -> list[Contender]:
    """All rows of the compare command: every method at every share, as it is and tuned; then PRANCE, whose network and
    selector are trained in their own three stages."""
    spec, config = experiment.spec(experiment.config.token_modes[0]), experiment.config.compare
    full, heads = macs(spec, spec.largest).total, config.selective.heads or spec.space.heads
    tunes = config.finetune.steps > 0
    rows = [Contender("dense", spec, experiment.largest, experiment.dense(seed), ())]
    if tunes:
        rows.append(
            Contender("dense_tuned", spec, experiment.largest, tuned(experiment, seed, "dense", None), ())
        )
    for share in config.shares:
        for name in config.methods:
            label = percent(share)
            if name in METHODS:
                what = at_macs(spec, spec.largest, name, share * full)
                rows.append(Contender(name + label, spec, what, experiment.dense(seed), ()))
            elif name in ("cdcp", "cait_cdcp"):
                rows.extend([pruned(experiment, seed, name, share)] if tunes else [])
                continue
            else:
                what = at_share(spec, name == "spvit", share, heads if name == "spvit" else 1)
            if tunes:
                params = tuned(experiment, seed, name + label, what)
                rows.append(Contender(f"{name}_tuned{label}", spec, what, params, ()))
                if isinstance(what, Selective):
                    free = dataclasses.replace(what, by_threshold=True)
                    rows.append(Contender(f"{name}_free{label}", spec, free, params, ()))
    for mode in experiment.config.token_modes:
        rows.extend(
            experiment.at_budgets(seed, mode)
            if experiment.config.budgets
            else [experiment.prance(seed, mode)]
        )
    return rows
