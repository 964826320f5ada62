"""Stages two and three of a cascade: the selector on tables, and fine-tuning under its decisions.

Stages are named seedN/cascade/selector_R and seedN/cascade/finetune_R for round R, and seedN/cascade/static_BUDGET for
static baselines; stage one is seedN/cascade/meta. Those of a peer stand in seedN/peers/NAME.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prance_jax.cascade.policies import TrainingPolicy
from prance_jax.cascade.routing import confidence_choices, confidence_demonstrations, mean_utility
from prance_jax.cascade.table import CascadeTable, TableEnv, TableParams, tabulate
from prance_jax.core.files import read_json, try_write
from prance_jax.data.prefetch import prefetch_to_device
from prance_jax.experiments.cascade.network import CascadeNetwork
from prance_jax.selector.cost_weight import cost_weight_from_asinh, cost_weight_to_asinh
from prance_jax.selector.observation import mlp_macs
from prance_jax.selector.rl.distributions import MultiCategorical
from prance_jax.selector.rl.ppo import PPO
from prance_jax.selector.rl.types import PPOState
from prance_jax.spec.cascade import Cascade, Step
from prance_jax.spec.structure import Structure
from prance_jax.training.checkpoint import Checkpoints
from prance_jax.training.loop import Stage
from prance_jax.training.stages import cascade as cascade_stage
from prance_jax.training.stages import finetune

UPDATES_PER_STEP = 10
"""Updates of PPO in one compiled call; one step of its stage."""


class CascadeStages(CascadeNetwork):
    """Stages two and three of a cascade. Methods train what is missing."""

    @functools.cached_property
    def rows_of_seeds(self) -> dict[int, list]:
        """Rows that `rows.cascade_rows` has computed, by seed."""
        return {}

    def run(self, stage: str) -> None:
        """Trains one of `experiment.STAGES` for all seeds, missing earlier ones first.

        Args:
          stage: 'dense', 'meta', 'selector' (on the network of stage one) or 'finetune'.
        """
        train = {
            "dense": self.dense,
            "meta": self.meta,
            "selector": lambda seed: self.table_policy(seed, 0),
            "finetune": self.cascade_params,
        }[stage]
        for seed in self.config.seeds:
            train(seed)

    def table_ppo(self, cascade: Cascade) -> PPO:
        """Returns the algorithm that trains the selector of a cascade.

        Args:
          cascade: the tree.
        """
        config, env = self.settings.selector, TableEnv(cascade, self.settings.selector.batch)
        return PPO(
            config.ppo,
            MultiCategorical((cascade.num_actions,)),
            env.observation_size,
            config.hidden,
            config.updates,
        )

    def decision_cost(self, cascade: Cascade) -> int:
        """Returns the MACs of one decision.

        Args:
          cascade: the tree.
        """
        ppo = self.table_ppo(cascade)
        return mlp_macs(ppo.observation_size, ppo.hidden, ppo.distribution.outputs)

    def table(self, cascade: Cascade, params: Any, images: np.ndarray, labels: np.ndarray) -> CascadeTable:
        """Returns the decision process of some images.

        Args:
          cascade: the tree.
          params: parameters of the cascade.
          images: float [N, S, S, channels].
          labels: int [N].
        """
        return tabulate(
            cascade,
            params,
            images,
            labels,
            quality=self.settings.selector.quality,
            decision_cost=self.decision_cost(cascade),
            batch=self.config.evaluation.batch,
        )

    def held_out_table(self, cascade: Cascade, params: Any) -> CascadeTable:
        """Returns the decision process of the validation images, which calibrate all budgets.

        Args:
          cascade: the tree.
          params: parameters of the cascade.
        """
        split, count = self.source.split("validation"), self.settings.selector.held_out
        return self.table(cascade, params, split.images[:count], split.labels[:count])

    def table_policy(self, seed: int, number: int) -> Any:
        """Returns the selector's parameters after stage two.

        Args:
          seed: of the run.
          number: round; 0 decides on the network of stage one, later ones on that of stage three.
        """
        cascade, config = self.cascade(seed), self.settings.selector
        ppo, env = self.table_ppo(cascade), TableEnv(cascade, config.batch)
        low_high = tuple(map(jnp.float32, config.cost_weights))
        key, inputs = jax.random.fold_in(self.key(seed, "selector"), number), []
        keys, name = jax.random.split(key, config.restarts), f"seed{seed}/{self.folder}/selector_{number}"

        def prepare() -> TableParams:
            if not inputs:
                images, labels = self._pool(seed)
                params = self.cascade_params(seed, number)
                inputs.append(TableParams(self.table(cascade, params, images, labels), low_high))
            return inputs[0]

        @jax.jit
        def train(state, index, env_params):
            run = lambda ppo_state, key: ppo.train(ppo_state, env, env_params, key, UPDATES_PER_STEP)
            learned, metrics = jax.vmap(run)(state["ppo"], keys)
            return {"ppo": learned}, jax.tree.map(lambda values: values[:, -1].mean(), metrics)

        def init():
            start_key = jax.random.fold_in(self.key(seed, "selector_init"), number)
            states = [ppo.init(key) for key in jax.random.split(start_key, config.restarts)]
            # A checkpoint replaces these values: no need to compute the table for them.
            if config.clone_steps and Checkpoints(self.workdir.checkpoints / name).latest() is None:
                states = [self._cloned(cascade, ppo, state, prepare().table) for state in states]
            return {"ppo": jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)}

        stage = Stage(
            name,
            max(1, config.updates // UPDATES_PER_STEP),
            init,
            lambda state, index: train(state, index, prepare()),
            ("return", "entropy", "explained_variance"),
        )
        policies = self.run_or_restore(stage)["ppo"].policy
        best = self._best_restart(seed, number, policies)
        return jax.tree.map(lambda leaf: leaf[best], policies)

    def _best_restart(self, seed: int, number: int, policies: Any) -> int:
        """The restart with the best mean utility on validation images; kept in the workdir."""
        config, file = self.settings.selector, self.workdir.path / f"cascade_seed{seed}_restart_{number}.json"
        if config.restarts == 1:
            return 0
        stored = read_json(file, lambda record: range(config.restarts)[record["restart"]])
        if stored is not None:
            return stored
        cascade = self.cascade(seed)
        ppo, table = self.table_ppo(cascade), self.held_out_table(cascade, self.cascade_params(seed, number))
        utilities = [
            mean_utility(
                cascade, ppo, jax.tree.map(lambda leaf: leaf[index], policies), table, config.cost_weights
            )
            for index in range(config.restarts)
        ]
        best = int(np.argmax(utilities))
        try_write(file, json.dumps({"restart": best, "utility": utilities}))
        return best

    def cascade_params(self, seed: int, number: int | None = None) -> Any:
        """Returns the parameters of the cascade after stage three.

        Args:
          seed: of the run.
          number: rounds of stage three that are behind; None for all of the config. 0: stage one.
        """
        number = max(1, self.settings.rounds) if number is None else number
        if number == 0:
            return self.meta(seed)
        cascade, config = self.cascade(seed), self.config.finetune
        rounds = max(1, self.settings.rounds)
        config = dataclasses.replace(config, steps=config.steps // rounds)
        if self.settings.rounds == 0:
            policy, policy_params = TrainingPolicy(cascade), ()
        else:
            weights = self.settings.selector.cost_weights
            policy = TrainingPolicy(cascade, self.table_ppo(cascade), weights, self.settings.explore)
            policy_params = self.table_policy(seed, number - 1)
        return self._tuned(seed, f"finetune_{number}", cascade, config, policy, policy_params, number - 1)

    def static_cascade(self, seed: int, look: int, structure: Structure, name: str) -> tuple[Cascade, Any]:
        """Returns one look at one static structure with every patch as a token, fine-tuned as long as the cascade.

        Args:
          seed: of the run.
          look: index of the look.
          structure: its structure.
          name: of the stage.
        """
        cascade = Cascade(self.cascade_spec.unrefined, (Step(0, look, 0, structure.groups),))
        return cascade, self._tuned(seed, name, cascade, self.config.finetune, TrainingPolicy(cascade), (), 0)

    def _tuned(self, seed, name, cascade, config, policy, policy_params, start_round) -> Any:
        """Runs a stage of fine-tuning from the network of a round."""
        start = self.cascade_params(seed, start_round)
        return self.train_stage(
            f"seed{seed}/{self.folder}/{name}",
            config.steps,
            lambda: finetune.init_finetune(start, config),
            cascade_stage.cascade_finetune_step(cascade, config, policy, self.source.sample, self.mesh),
            config.batch,
            (self.key(seed, "finetune"), policy_params, self._teacher(seed)),
            ("loss", "accuracy"),
        )["ema"]

    def _cloned(self, cascade: Cascade, ppo: PPO, state: PPOState, table: CascadeTable) -> PPOState:
        """Behaviour cloning of the best confidence thresholds at several cost weights."""
        config = self.settings.selector
        part = CascadeTable(*(leaf[:2048] for leaf in table[:-1]), table.cost)
        scaled = jnp.linspace(*map(cost_weight_to_asinh, config.cost_weights), 9, dtype=jnp.float32)
        cost_weights = np.asarray(cost_weight_from_asinh(scaled))
        choices = confidence_choices(cascade, part)
        rows = confidence_demonstrations(cascade, part, choices, cost_weights)
        clone = jax.jit(
            lambda state, rows: ppo.clone(state, *rows, jax.random.key(0), config.clone_steps, 1024)
        )
        return clone(state, rows)

    def _pool(self, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Images and labels of stage two, drawn from the training data."""
        batch, count = 256, self.settings.selector.pool
        tables, key = prefetch_to_device(self.source, batch, mesh=self.mesh), self.key(seed, "pool")
        draw = jax.jit(lambda tables, key: self.source.sample_plain(tables, key, batch))
        parts = [
            jax.device_get(draw(next(tables), jax.random.fold_in(key, index)))
            for index in range(-(-count // batch))
        ]
        images, labels = (np.concatenate(column)[:count] for column in zip(*parts))
        return images, labels
