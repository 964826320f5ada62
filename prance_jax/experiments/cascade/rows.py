"""The rows of a cascade's table: ours, and what it must be compared with, at equal mean MACs.

All rows but the dense ones are read from tables: every node's answer on every test image is computed once.

- `best_static_finetuned`: the best static structure of any look at the budget, fine-tuned as long with the same teacher.
- `random_routing`: the cascade's weights, images shared out over the nodes as ours does, but at random.
- `confidence`: the cascade's weights, a threshold on the largest probability, calibrated on validation images.
- `prance_cascade`: the selector.
- `oracle`: the cascade's weights, routed by an agent that knows the labels; no method can reach it.
- `tome_tuned` and so on, of `cascade.methods`: the dense network with a schedule, fine-tuned (`method_entries`).
- the names of `cascade.peers`: other cascades, trained for as many steps, each with its confidence threshold.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from prance_jax.cascade.routing import (
    ConfidenceRule,
    Routed,
    best_confidence_rule,
    confidence_choices,
    confidence_nodes,
    confidence_rule_at,
    cost_weight_for,
    route,
    selector_actions,
)
from prance_jax.cascade.table import CascadeTable, optimal_actions, stop_nodes
from prance_jax.config.cascade import PeerConfig
from prance_jax.experiments.cascade.peers import PeerStages
from prance_jax.experiments.cascade.stages import CascadeStages
from prance_jax.experiments.stage_runner import TableEntry, budget_suffix
from prance_jax.models.reduction import reduction_at_macs, scheduled_macs
from prance_jax.spec.cascade import Cascade


class CascadeRow(NamedTuple):
    """One method at one budget, on the test images.

    Attributes:
      method: key of the row.
      routed: where images stopped.
      cascade: the tree that the nodes belong to.
      params: parameters of the cascade.
      cost_weight: at which the selector meets the budget; None for other methods.
      table: test images of the cascade.
      rule: by which images of a peer stop; None for other methods.
    """

    method: str
    routed: Routed
    cascade: Cascade
    params: Any
    cost_weight: float | None
    table: CascadeTable
    rule: ConfidenceRule | None = None


def cascade_rows(experiment: CascadeStages, seed: int) -> list[CascadeRow]:
    """Returns the rows of one seed at every budget; stages that are not there are trained first.

    They are computed once per experiment: for the table, and for the pictures.

    Args:
      experiment: the run.
      seed: of the run.
    """
    if seed not in experiment.rows_of_seeds:
        experiment.rows_of_seeds[seed] = _compute_rows(experiment, seed)
    return experiment.rows_of_seeds[seed]


def _compute_rows(experiment: CascadeStages, seed: int) -> list[CascadeRow]:
    cascade, params = experiment.cascade(seed), experiment.cascade_params(seed)
    settings = experiment.settings
    policy_params = experiment.table_policy(seed, max(1, settings.rounds))
    test = experiment.source.split("test")
    held_out = experiment.held_out_table(cascade, params)
    table = experiment.table(cascade, params, test.images, test.labels)
    ppo, choices, rows = experiment.table_ppo(cascade), confidence_choices(cascade, held_out), []

    def add(method: str, node: np.ndarray, cost_weight: float | None = None) -> None:
        rows.append(CascadeRow(method, route(table, node), cascade, params, cost_weight, table))

    for budget in settings.budgets:
        suffix = budget_suffix(budget)
        rows.append(best_static(experiment, seed, budget))
        chosen = lambda weight, part=held_out: selector_actions(cascade, ppo, policy_params, part, weight)
        cost_weight = cost_weight_for(cascade, chosen, held_out, budget, settings.selector.cost_weights)
        node = np.asarray(stop_nodes(cascade, chosen(cost_weight, table)))
        _note_spent(experiment, seed, "the selector", budget, route(table, node))
        add(f"random_routing{suffix}", np.random.default_rng(seed).permutation(node))
        add(f"confidence{suffix}", confidence_nodes(table, best_confidence_rule(choices, budget)))
        add(f"prance_cascade{suffix}", node, cost_weight)
        best = lambda weight, part=held_out: optimal_actions(cascade, part, jnp.float32(weight))
        oracle_weight = cost_weight_for(cascade, best, held_out, budget, (0.0, 100.0))
        add(f"oracle{suffix}", np.asarray(stop_nodes(cascade, best(oracle_weight, table))))
    for peer in settings.peers:
        rows += peer_rows(experiment, seed, peer)
    return rows


def peer_rows(experiment: CascadeStages, seed: int, peer: PeerConfig) -> list[CascadeRow]:
    """Returns the rows of another cascade, at every budget that a threshold meets within 2 % on validation images.

    Args:
      experiment: the run.
      seed: of the run.
      peer: name and looks.
    """
    stages, test, rows = PeerStages(experiment, peer), experiment.source.split("test"), []
    cascade, params = stages.cascade(seed), stages.cascade_params(seed)
    choices = confidence_choices(cascade, stages.held_out_table(cascade, params), num_thresholds=1000)
    table = stages.table(cascade, params, test.images, test.labels)
    for budget in experiment.settings.budgets:
        rule = confidence_rule_at(choices, budget)
        if rule is None:
            nearest = min((choice.cost for choice in choices), key=lambda cost: abs(cost - budget))
            experiment.progress.note(
                f"seed{seed}: {peer.name} has no row at budget {budget:g}, its nearest threshold spends {nearest:.3f}"
            )
            continue
        routed, method = route(table, confidence_nodes(table, rule)), f"{peer.name}{budget_suffix(budget)}"
        _note_spent(experiment, seed, peer.name, budget, routed)
        rows.append(CascadeRow(method, routed, cascade, params, None, table, rule))
    return rows


def _note_spent(experiment: CascadeStages, seed: int, name: str, budget: float, routed: Routed) -> None:
    """Notes that a row spends another share than its budget on the test images."""
    spent = float(routed.cost.mean())
    if abs(spent - budget) > 0.02 * budget:
        experiment.progress.note(
            f"seed{seed}: at budget {budget:g} {name} spends {spent:.3f} of the dense MACs, so its row is not at equal MACs"
        )


def method_entries(experiment: CascadeStages, seed: int) -> list[TableEntry]:
    """Returns the rows of `cascade.methods`: at every budget that a schedule meets within 5 %, fine-tuned.

    Args:
      experiment: the run.
      seed: of the run.
    """
    spec, entries = experiment.cascade_spec.dense, []
    plain = dataclasses.replace(spec, exits=())
    for budget in experiment.settings.budgets:
        for name in experiment.settings.methods:
            reduction = reduction_at_macs(
                plain, plain.largest, name, budget * experiment.cascade_spec.dense_macs
            )
            share = scheduled_macs(plain, plain.largest, reduction).total / experiment.cascade_spec.dense_macs
            if abs(share - budget) > 0.05 * budget:
                experiment.progress.note(
                    f"seed{seed}: {name} has no row at budget {budget:g}, its nearest schedule costs {share:.3f}"
                )
                continue
            suffix = budget_suffix(budget)
            params = experiment.finetuned_baseline(seed, name + suffix, reduction)
            entries.append(TableEntry(f"{name}_tuned{suffix}", plain, reduction, params, ()))
    return entries


def best_static(experiment: CascadeStages, seed: int, budget: float) -> CascadeRow:
    """Returns the best static structure of any look at a budget, fine-tuned as long as the cascade.

    Args:
      experiment: the run.
      seed: of the run.
      budget: share of the dense MACs.
    """
    name = f"static{budget_suffix(budget)}"
    look, structure = experiment.static_structure(seed, budget)
    cascade, params = experiment.static_cascade(seed, look, structure, name)
    test = experiment.source.split("test")
    table = experiment.table(cascade, params, test.images, test.labels)
    node = np.ones(len(test.labels), np.int32)
    return CascadeRow(
        f"best_static_finetuned{budget_suffix(budget)}", route(table, node), cascade, params, None, table
    )
