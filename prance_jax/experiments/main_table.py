"""The rows of a run's table: PRANCE, and what it is compared with at the MACs that it spends.

Stages of baselines are named as those of `experiment`: seedN/MODE/finetune_random and .../finetune_static.
"""

from __future__ import annotations

import json

import jax.numpy as jnp

from prance_jax.config.experiment import Config
from prance_jax.core.files import write_atomic
from prance_jax.evaluation.static_search import search_static_structure
from prance_jax.experiments.experiment import Experiment
from prance_jax.experiments.stage_runner import TableEntry, percent
from prance_jax.models.reduction import at_macs
from prance_jax.selector.policies import RandomPolicy, StaticPolicy
from prance_jax.spec.macs import macs
from prance_jax.spec.structure import GroupChoice, Structure


def best_static(experiment: Experiment, seed: int, mode: str, budget: float) -> TableEntry:
    """The best static structure at `budget` MACs; the search's result is kept in the workdir."""
    spec, settings = experiment.spec(mode), experiment.config.baselines
    file = experiment.workdir.path / f"static_seed{seed}_{mode}.json"
    structure = _read_structure(file, budget)
    if structure is None:
        experiment.progress.note(
            f"seed{seed}/{mode}: searching the best of {settings.candidates} static structures"
        )
        structure, loss = search_static_structure(
            spec,
            experiment.selector(mode).lattice,
            experiment.meta(seed),
            experiment.source.split("validation"),
            budget,
            candidates=settings.candidates,
            images=settings.images,
            seed=seed,
        )
        write_atomic(file, json.dumps({"budget": budget, "loss": loss, "structure": structure}))
    policy = StaticPolicy(structure)
    params = experiment.meta(seed)
    if settings.finetune:
        params = experiment.finetuned(seed, mode, "finetune_static", policy, ())
    return TableEntry(_name("best_static", mode, experiment.config), spec, policy, params, ())


def random_policy(experiment: Experiment, seed: int, mode: str, share: float) -> TableEntry:
    """Random decisions whose mean MACs are `share` of the full network's."""
    spec = experiment.spec(mode)
    policy = RandomPolicy(experiment.first_group(), experiment.selector(mode).lattice)
    size_bias = jnp.float32(policy.size_bias_for(spec, share))
    params = experiment.meta(seed)
    if experiment.config.baselines.finetune:
        params = experiment.finetuned(seed, mode, "finetune_random", policy, size_bias)
    return TableEntry(_name("random_policy", mode, experiment.config), spec, policy, params, size_bias)


def reduction_entries(experiment: Experiment, seed: int, target: float, suffix: str = "") -> list[TableEntry]:
    """Token reductions that need no training, on the dense network, at the MACs nearest to `target`."""
    spec = experiment.spec(experiment.config.token_modes[0])
    return [
        TableEntry(name + suffix, spec, at_macs(spec, spec.largest, name, target), experiment.dense(seed), ())
        for name in experiment.config.baselines.reductions
    ]


def table_entries(experiment: Experiment, seed: int) -> list[TableEntry]:
    """All rows of one seed; budgets of the baselines are what PRANCE really spends on the validation images."""
    spec = experiment.spec(experiment.config.token_modes[0])
    rows = [
        TableEntry("dense", spec, experiment.largest, experiment.dense(seed), ()),
        TableEntry("meta_largest", spec, experiment.largest, experiment.meta(seed), ()),
    ]
    for mode in experiment.config.token_modes:
        if experiment.config.budgets:
            rows.extend(experiment.at_budgets(seed, mode))
            if mode == experiment.config.token_modes[0]:
                full = macs(spec, spec.largest).total
                for budget in experiment.config.budgets:
                    rows.extend(reduction_entries(experiment, seed, budget * full, percent(budget)))
            continue
        prance = experiment.prance(seed, mode)
        spent = experiment.evaluate(prance, "validation").macs.mean()
        full = macs(spec, spec.largest).total
        rows.append(best_static(experiment, seed, mode, float(spent)))
        rows.append(random_policy(experiment, seed, mode, float(spent) / full))
        if mode == experiment.config.token_modes[0]:
            rows.extend(reduction_entries(experiment, seed, float(spent)))
        rows.append(prance)
    return rows


def _name(method: str, mode: str, config: Config) -> str:
    """The first mode's baselines carry the plain name."""
    return method if mode == config.token_modes[0] else f"{method}_{mode}"


def _read_structure(file, budget: float) -> Structure | None:
    """The structure that an earlier search for the same budget found."""
    try:
        found = json.loads(file.read_text())
        if found["budget"] != budget:
            return None
        (groups,) = found["structure"]
        return Structure(tuple(GroupChoice(*(tuple(field) for field in group)) for group in groups))
    except (OSError, ValueError, KeyError, TypeError):
        return None
