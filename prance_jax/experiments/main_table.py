"""The rows of a run's table: PRANCE, and baselines at the MACs that it spends.

Baselines with their own stage three have the stages seedN/MODE/finetune_random and
seedN/MODE/finetune_static.
"""

from __future__ import annotations

import json

import jax.numpy as jnp

from prance_jax.config.experiment import Config
from prance_jax.core.files import read_json, try_write
from prance_jax.evaluation.static_search import search_static_structure
from prance_jax.experiments.experiment import Experiment
from prance_jax.experiments.stage_runner import TableEntry, budget_suffix
from prance_jax.models.reduction import reduction_at_macs
from prance_jax.selector.policies import RandomPolicy, StaticPolicy
from prance_jax.spec.macs import macs
from prance_jax.spec.structure import GroupChoice, Structure


def table_entries(experiment: Experiment, seed: int) -> list[TableEntry]:
    """Returns all rows of one seed.

    Baselines get the mean MACs that PRANCE spends on the validation images.

    Args:
      experiment: the run.
      seed: of the run.
    """
    first_mode = experiment.config.token_modes[0]
    spec = experiment.spec(first_mode)
    full = macs(spec, spec.largest).total
    entries = [
        TableEntry("dense", spec, experiment.largest, experiment.dense(seed), ()),
        TableEntry("meta_largest", spec, experiment.largest, experiment.meta(seed), ()),
    ]
    for mode in experiment.config.token_modes:
        if experiment.config.budgets:
            entries.extend(experiment.at_budgets(seed, mode))
            if mode == first_mode:
                for budget in experiment.config.budgets:
                    entries.extend(reduction_entries(experiment, seed, budget * full, budget_suffix(budget)))
            continue
        prance = experiment.prance(seed, mode)
        mean_macs = float(experiment.evaluate(prance, "validation").macs.mean())
        entries.append(best_static(experiment, seed, mode, mean_macs))
        entries.append(random_policy(experiment, seed, mode, mean_macs / full))
        if mode == first_mode:
            entries.extend(reduction_entries(experiment, seed, mean_macs))
        entries.append(prance)
    return entries


def best_static(experiment: Experiment, seed: int, mode: str, budget: float) -> TableEntry:
    """Returns the best static structure at a budget.

    The structure that the search finds is kept in the workdir.

    Args:
      experiment: the run.
      seed: of the run.
      mode: token mode.
      budget: in MACs.
    """
    spec, settings = experiment.spec(mode), experiment.config.baselines
    file = experiment.workdir.path / f"static_seed{seed}_{mode}.json"
    structure = read_json(file, lambda record: _parse_structure(record, budget))
    if structure is None:
        experiment.progress.note(
            f"seed{seed}/{mode}: searching the best of {settings.candidates} static structures"
        )
        structure, loss = search_static_structure(
            spec,
            experiment.selector(mode).finite_actions,
            experiment.meta(seed),
            experiment.source.split("validation"),
            budget,
            candidates=settings.candidates,
            images=settings.images,
            seed=seed,
        )
        try_write(file, json.dumps({"budget": budget, "loss": loss, "structure": structure}))
    policy = StaticPolicy(structure)
    params = experiment.meta(seed)
    if settings.finetune:
        params = experiment.finetuned(seed, mode, "finetune_static", policy, ())
    return TableEntry(_method("best_static", mode, experiment.config), spec, policy, params, ())


def random_policy(experiment: Experiment, seed: int, mode: str, share: float) -> TableEntry:
    """Returns random decisions, biased in size to given mean MACs.

    Args:
      experiment: the run.
      seed: of the run.
      mode: token mode.
      share: mean MACs as a share of the dense network's.
    """
    spec = experiment.spec(mode)
    policy = RandomPolicy(experiment.first_group(), experiment.selector(mode).finite_actions)
    size_bias = jnp.float32(policy.size_bias_for(spec, share))
    params = experiment.meta(seed)
    if experiment.config.baselines.finetune:
        params = experiment.finetuned(seed, mode, "finetune_random", policy, size_bias)
    return TableEntry(_method("random_policy", mode, experiment.config), spec, policy, params, size_bias)


def reduction_entries(experiment: Experiment, seed: int, target: float, suffix: str = "") -> list[TableEntry]:
    """Returns the token reductions of `baselines.reductions` on the dense network, without training.

    Args:
      experiment: the run.
      seed: of the run.
      target: MACs; each schedule comes as near as it can.
      suffix: end of the keys of the rows.
    """
    spec = experiment.spec(experiment.config.token_modes[0])
    return [
        TableEntry(
            name + suffix,
            spec,
            reduction_at_macs(spec, spec.largest, name, target),
            experiment.dense(seed),
            (),
        )
        for name in experiment.config.baselines.reductions
    ]


def _method(baseline: str, mode: str, config: Config) -> str:
    """Key of a row; the baselines of the first mode have the plain name."""
    return baseline if mode == config.token_modes[0] else f"{baseline}_{mode}"


def _parse_structure(record: dict, budget: float) -> Structure | None:
    """The structure of an earlier search; None if it was at another budget."""
    (groups,) = record["structure"]
    structure = Structure(tuple(GroupChoice(*(tuple(field) for field in group)) for group in groups))
    return structure if record["budget"] == budget else None
