"""The dense network and the three stages of PRANCE.

Stages are named seedN/dense, seedN/meta, seedN/MODE/selector, seedN/MODE/finetune (and .../finetune_random,
.../finetune_static for baselines that get a stage three of their own). Each is restored when it is there.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Callable

from prance_jax.adaptive.bucket_latency import load_latency_table
from prance_jax.adaptive.buckets import Buckets
from prance_jax.adaptive.calibrate import calibrated_budget_table, collect_decisions
from prance_jax.adaptive.choose_buckets import choose_buckets
from prance_jax.adaptive.rounding import BucketedPolicy
from prance_jax.baselines.predictor_config import PredictorConfig
from prance_jax.core.sharding import replicate
from prance_jax.experiments.stage_runner import StageRunner, TableEntry, percent
from prance_jax.models.reduction import ScheduledReduction
from prance_jax.selector.policies import DecisionPolicy, RandomCostPolicy
from prance_jax.spec.model_spec import ModelSpec
from prance_jax.spec.structure import GroupChoice
from prance_jax.training.checkpoint import Checkpoints
from prance_jax.training.loop import Stage
from prance_jax.training.stages import baseline_finetune, finetune, pretrain
from prance_jax.training.stages import selector as selector_stage
from prance_jax.training.stages.selector import Selector
from prance_jax.zoo.from_dense import load_start, meta_from_dense


class PranceStages(StageRunner):
    """What each stage trains, from what, and with which random numbers."""

    @property
    def meta_spec(self) -> ModelSpec:
        """Stage one serves all token modes: with several of them it trains prune_merge, which holds the other two."""
        modes = self.config.token_modes
        return self.spec(modes[0] if len(modes) == 1 else "prune_merge")

    def first_group(self) -> GroupChoice:
        return self.meta_spec.space.first_group(self.config.model.first_group)

    def selector(self, mode: str, budget: float | None = None) -> Selector:
        """The config's selector, or the same trained for one budget alone."""
        config = self.config.selector
        if budget is not None:
            reward = dataclasses.replace(config.reward, target_macs=budget)
            config = dataclasses.replace(config, cost_weights=None, reward=reward)
        spec, table = self.spec(mode), None
        if config.latency_table is not None:
            table = load_latency_table(config.latency_table, spec)
        return Selector(spec, config, self.first_group(), table, self.mesh)

    def dense(self, seed: int) -> Any:
        """Parameters of the dense network, trained alone."""
        spec, config = self.spec(self.config.token_modes[0]), self.config.dense
        step = pretrain.dense_step(spec, config, self.source.sample, self.mesh)
        state = self.train_stage(
            f"seed{seed}/dense",
            config.steps,
            lambda: pretrain.init_pretrain(spec, config, self.key(seed, "init")),
            step,
            config.batch,
            (self.key(seed, "dense"),),
            ("loss", "accuracy"),
        )
        return state["ema"]

    def tuned(
        self,
        seed: int,
        name: str,
        what: ScheduledReduction | PredictorConfig | None,
        consistent: bool = False,
    ) -> Any:
        """Parameters of the dense network tuned under another method, with itself as the teacher, by `compare.finetune`; None:
        as it is. name: of the stage. consistent: with MCTF's consistency."""
        spec, config = self.spec(self.config.token_modes[0]), self.config.compare
        teacher, key = self.dense(seed), self.key(seed, "tune")
        consistency = config.consistency if consistent else None
        return self.train_stage(
            f"seed{seed}/compare/{name}",
            config.finetune.steps,
            lambda: baseline_finetune.init_baseline(spec, what, teacher, config.finetune, key),
            baseline_finetune.baseline_step(
                spec, config.finetune, config.predictor, what, self.source.sample, self.mesh, consistency
            ),
            config.finetune.batch,
            (key, teacher),
            ("loss", "accuracy"),
        )["ema"]

    def meta(self, seed: int) -> Any:
        """Parameters of the meta-network after stage one."""
        spec, config = self.meta_spec, self.config.meta
        keep_choices = (self.config.selector.keep_choices,) * spec.rates
        if spec.rates > 1:
            # As often one alone as both together, else the product of two rates leaves hardly a token.
            keep_choices = tuple((*choices, *(1.0,) * len(choices)) for choices in keep_choices)
        step = pretrain.meta_step(
            spec, config, self.first_group(), keep_choices, self.source.sample, self.mesh
        )
        name = f"seed{seed}/meta"
        begun = Checkpoints(self.workdir.checkpoints / name).latest() is not None
        start = None if begun or config.init_from is None else self._start(seed)
        state = self.train_stage(
            name,
            config.steps,
            lambda: pretrain.init_pretrain(spec, config, self.key(seed, "init"), start),
            step,
            config.batch,
            (self.key(seed, "meta"),),
            ("loss", "accuracy", "accuracy_random"),
        )
        return state["ema"]

    def _start(self, seed: int) -> Callable[[Any], Any]:
        """(fresh parameters) -> those that stage one starts from, by `meta.init_from`."""
        spec, origin = self.meta_spec, self.config.meta.init_from
        if origin != "dense":
            return lambda fresh: load_start(origin, spec, fresh)
        source, dense = self.spec(self.config.token_modes[0]), self.dense(seed)
        return lambda fresh: meta_from_dense(dense, source, spec, fresh)

    def policy_params(self, seed: int, mode: str, budget: float | None = None) -> Any:
        """The selector's policy after stage two; budget: as in `prance`."""
        selector = self.selector(mode, budget)
        name = f"seed{seed}/{mode}/selector{percent(budget)}"
        params = self.meta(seed)
        held: list = []

        def step(state, index):
            if not held:
                key = self.key(seed, "pool")
                pool = selector_stage.draw_pool(selector, params, self.source, key)
                arguments = self.key(seed, "selector", mode), params, *pool
                held.append(replicate(self.mesh, arguments))
            return selector_stage.selector_step(selector)(state, index, *held[0])

        stage = Stage(
            name,
            selector.config.updates,
            lambda: selector.init(self.key(seed, "selector_init", mode)),
            step,
            ("reward", "correct", "macs_kept"),
        )
        return self._stage(stage)["ppo"].policy

    def finetuned(
        self,
        seed: int,
        mode: str,
        kind: str,
        policy: DecisionPolicy,
        policy_params: Any,
        budget: float | None = None,
    ) -> Any:
        """Parameters after stage three under a rule. kind: 'finetune', 'finetune_random' or 'finetune_static'; budget:
        as in `prance`."""
        start, config, spec = self.meta(seed), self.config.finetune, self.spec(mode)
        if isinstance(policy, RandomCostPolicy) and config.every_budget_steps is not None:
            config = dataclasses.replace(config, steps=config.every_budget_steps)
        return self.train_stage(
            f"seed{seed}/{mode}/{kind}{percent(budget)}",
            config.steps,
            lambda: finetune.init_finetune(start, config),
            finetune.finetune_step(spec, config, policy, self.source.sample, self.mesh),
            config.batch,
            (self.key(seed, kind, mode), policy_params, self._teacher(seed)),
            ("loss", "accuracy", "macs_kept"),
        )["ema"]

    def _teacher(self, seed: int) -> Any:
        """Of stage three, by `finetune.teacher`."""
        teachers = {
            "meta": lambda: self.meta(seed),
            "dense": lambda: self.dense(seed),
            "dense_tuned": lambda: self.tuned(seed, "dense", None),
        }
        return teachers[self.config.finetune.teacher]()

    def prance(self, seed: int, mode: str, budget: float | None = None) -> TableEntry:
        """A selector and the network tuned under it; the policy, without a price where it was trained for every budget.

        budget: of a selector trained for this share of dense MACs alone; by default the one of the config.
        """
        selector, policy_params = self.selector(mode, budget), self.policy_params(seed, mode, budget)
        policy, cost_weights = selector.policy, selector.config.cost_weights
        if self.config.finetune.round_to_buckets:
            policy = BucketedPolicy(policy, self.buckets(seed, selector, policy_params))
        tuned_under = policy if cost_weights is None else RandomCostPolicy(policy, cost_weights)
        params = self.finetuned(seed, mode, "finetune", tuned_under, policy_params, budget)
        name = f"prance_{mode}" if budget is None else f"single_{mode}{percent(budget)}"
        return TableEntry(name, self.spec(mode), policy, params, policy_params, selector.decision_cost)

    def buckets(self, seed: int, selector: Selector, policy_params: Any) -> Buckets:
        """The plans of a selector, from what it decides on the validation images with stage one's network."""
        settings, split, params = self.config.evaluation, self.source.split("validation"), self.meta(seed)
        if selector.config.cost_weights is None:
            images = split.images[: settings.calibration_images]
            found = collect_decisions(selector.spec, selector.policy, params, policy_params, images)
        else:
            _, found = calibrated_budget_table(
                selector.spec, selector.policy, params, policy_params, split, selector.config.cost_weights
            )
        return choose_buckets(selector.spec, found, settings.buckets, settings.token_multiple)
