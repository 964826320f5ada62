"""The dense network, the three stages of PRANCE, and fine-tuned baselines.

Stages are named seedN/dense, seedN/meta, seedN/MODE/selector, seedN/MODE/finetune (and
.../finetune_random, .../finetune_static for baselines with their own stage three), and
seedN/compare/NAME for fine-tuned baselines.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

from prance_jax.adaptive.bucket_latency import load_latency_table
from prance_jax.adaptive.buckets import Buckets
from prance_jax.adaptive.calibrate import calibrate_budget_table, collect_decisions
from prance_jax.adaptive.choose_buckets import choose_buckets
from prance_jax.adaptive.rounding import BucketedPolicy
from prance_jax.baselines.predictor_config import PredictorConfig
from prance_jax.core.sharding import replicate
from prance_jax.experiments.stage_runner import StageRunner, TableEntry, budget_suffix
from prance_jax.models.reduction import ScheduledReduction
from prance_jax.selector.policies import DecisionPolicy, RandomCostPolicy, StaticPolicy
from prance_jax.spec.model_spec import ModelSpec
from prance_jax.spec.structure import GroupChoice
from prance_jax.training.checkpoint import Checkpoints
from prance_jax.training.loop import Stage
from prance_jax.training.stages import baseline_finetune, finetune, pretrain
from prance_jax.training.stages import selector as selector_stage
from prance_jax.training.stages.selector import Selector
from prance_jax.zoo.from_dense import load_initial_params, meta_from_dense


class PranceStages(StageRunner):
    """What each stage trains, and from what. Methods train what is missing."""

    def check(self) -> None:
        """Builds selectors too, see `StageRunner.check`."""
        super().check()
        for mode in self.config.token_modes:
            self.selector(mode)

    @property
    def meta_spec(self) -> ModelSpec:
        """The meta-network. Several token modes share that of prune_merge."""
        modes = self.config.token_modes
        return self.spec(modes[0] if len(modes) == 1 else "prune_merge")

    def first_group(self) -> GroupChoice:
        """Returns the fixed structure of group 0."""
        return self.meta_spec.space.first_group(self.config.model.first_group)

    def selector(self, mode: str, budget: float | None = None) -> Selector:
        """Returns the selector of a token mode, without its learned parameters.

        Args:
          mode: token mode.
          budget: share of the dense MACs that the selector is trained for alone; None: as the
            config says.
        """
        config = self.config.selector
        if budget is not None:
            reward = dataclasses.replace(config.reward, target_macs=budget)
            config = dataclasses.replace(config, cost_weights=None, reward=reward)
        spec, table = self.spec(mode), None
        if config.latency_table is not None:
            table = load_latency_table(config.latency_table, spec)
        return Selector(spec, config, self.first_group(), table, self.mesh)

    def dense(self, seed: int) -> Any:
        """Returns the parameters of the dense network."""
        spec, config = self.spec(self.config.token_modes[0]), self.config.dense
        step = pretrain.dense_step(spec, config, self.source.sample, self.mesh)
        name, start = f"seed{seed}/dense", None
        has_begun = Checkpoints(self.workdir.checkpoints / name).latest() is not None
        if config.init_from is not None and not has_begun:
            start = functools.partial(load_initial_params, config.init_from, spec)
        return self.train_stage(
            name,
            config.steps,
            lambda: pretrain.init_pretrain(spec, config, self.key(seed, "init"), start),
            step,
            config.batch,
            (self.key(seed, "dense"),),
            ("loss", "accuracy"),
            self.validator(spec, {"val_accuracy": self.largest}),
        )["ema"]

    def meta(self, seed: int) -> Any:
        """Returns the parameters of the meta-network after stage one."""
        spec, config = self.meta_spec, self.config.meta
        keep_choices = (self.config.selector.keep_choices,) * spec.rates
        if spec.rates > 1:
            # Each rate keeps all tokens in half of the draws: two low rates together keep hardly any.
            keep_choices = tuple((*choices, *(1.0,) * len(choices)) for choices in keep_choices)
        step = pretrain.meta_step(
            spec, config, self.first_group(), keep_choices, self.source.sample, self.mesh
        )
        smallest = spec.space.smallest((config.smallest_keep,) * spec.rates)
        policies = {
            "val_accuracy": StaticPolicy(spec.largest),
            "val_accuracy_smallest": StaticPolicy(smallest),
        }
        name = f"seed{seed}/meta"
        has_begun = Checkpoints(self.workdir.checkpoints / name).latest() is not None
        start = None if has_begun or config.init_from is None else self._meta_start(seed)
        return self.train_stage(
            name,
            config.steps,
            lambda: pretrain.init_pretrain(spec, config, self.key(seed, "init"), start),
            step,
            config.batch,
            (self.key(seed, "meta"),),
            ("loss", "accuracy", "accuracy_random"),
            self.validator(spec, policies),
        )["ema"]

    def policy_params(self, seed: int, mode: str, budget: float | None = None) -> Any:
        """Returns the selector's parameters after stage two.

        Args:
          seed: of the run.
          mode: token mode.
          budget: see `selector`.
        """
        selector, params = self.selector(mode, budget), self.meta(seed)
        arguments: list = []

        def step(state, index):
            if not arguments:
                pool = selector_stage.draw_pool(selector, params, self.source, self.key(seed, "pool"))
                key = self.key(seed, "selector", mode)
                arguments.append(replicate(self.mesh, (key, params, *pool)))
            return selector_stage.selector_step(selector)(state, index, *arguments[0])

        stage = Stage(
            f"seed{seed}/{mode}/selector{budget_suffix(budget)}",
            selector.config.updates,
            lambda: selector.init(self.key(seed, "selector_init", mode)),
            step,
            ("reward", "correct", "macs_kept"),
        )
        return self.run_or_restore(stage)["ppo"].policy

    def finetuned(
        self,
        seed: int,
        mode: str,
        kind: str,
        policy: DecisionPolicy,
        policy_params: Any,
        budget: float | None = None,
    ) -> Any:
        """Returns the parameters of the network after stage three, fine-tuned under a policy.

        Args:
          seed: of the run.
          mode: token mode.
          kind: 'finetune', 'finetune_random' or 'finetune_static'; names the stage and its random
            stream.
          policy: decides during the fine-tuning.
          policy_params: what the policy decides by.
          budget: see `selector`.
        """
        start, config, spec = self.meta(seed), self.config.finetune, self.spec(mode)
        if isinstance(policy, RandomCostPolicy) and config.every_budget_steps is not None:
            config = dataclasses.replace(config, steps=config.every_budget_steps)
        return self.train_stage(
            f"seed{seed}/{mode}/{kind}{budget_suffix(budget)}",
            config.steps,
            lambda: finetune.init_finetune(start, config),
            finetune.finetune_step(spec, config, policy, self.source.sample, self.mesh),
            config.batch,
            (self.key(seed, kind, mode), policy_params, self._teacher(seed)),
            ("loss", "accuracy", "macs_kept"),
            self.validator(spec, {"val_accuracy": policy}, policy_params),
        )["ema"]

    def prance(self, seed: int, mode: str, budget: float | None = None) -> TableEntry:
        """Returns a trained selector with the network fine-tuned under it.

        A selector trained for all budgets has no cost weight yet: see `Experiment.at_budgets`.

        Args:
          seed: of the run.
          mode: token mode.
          budget: see `selector`.
        """
        selector, policy_params = self.selector(mode, budget), self.policy_params(seed, mode, budget)
        policy, cost_weights = selector.policy, selector.config.cost_weights
        if self.config.finetune.round_to_buckets:
            policy = BucketedPolicy(policy, self.buckets(seed, selector, policy_params))
        training_policy = policy if cost_weights is None else RandomCostPolicy(policy, cost_weights)
        params = self.finetuned(seed, mode, "finetune", training_policy, policy_params, budget)
        method = f"prance_{mode}" if budget is None else f"single_{mode}{budget_suffix(budget)}"
        return TableEntry(method, self.spec(mode), policy, params, policy_params, selector.decision_cost)

    def buckets(self, seed: int, selector: Selector, policy_params: Any) -> Buckets:
        """Chooses buckets by the decisions of a selector on validation images.

        The network is that of stage one.

        Args:
          seed: of the run.
          selector: decides.
          policy_params: its parameters after stage two.
        """
        settings, split, params = self.config.evaluation, self.source.split("validation"), self.meta(seed)
        if selector.config.cost_weights is None:
            images = split.images[: settings.calibration_images]
            decisions = collect_decisions(selector.spec, selector.policy, params, policy_params, images)
        else:
            _, decisions = calibrate_budget_table(
                selector.spec, selector.policy, params, policy_params, split, selector.config.cost_weights
            )
        return choose_buckets(selector.spec, decisions, settings.buckets, settings.token_multiple)

    def finetuned_baseline(
        self,
        seed: int,
        name: str,
        reduction: ScheduledReduction | PredictorConfig | None,
        consistent: bool = False,
    ) -> Any:
        """Returns the parameters of the dense network fine-tuned under another method.

        Settings are those of `compare.finetune`. The dense network itself is the teacher.

        Args:
          seed: of the run.
          name: name of the stage.
          reduction: a schedule, or token predictors; None fine-tunes the dense network as it is.
          consistent: whether MCTF's consistency loss is added.
        """
        spec, config = self.spec(self.config.token_modes[0]), self.config.compare
        teacher, key = self.dense(seed), self.key(seed, "tune")
        consistency = config.consistency if consistent else None
        return self.train_stage(
            f"seed{seed}/compare/{name}",
            config.finetune.steps,
            lambda: baseline_finetune.init_baseline(spec, reduction, teacher, config.finetune, key),
            baseline_finetune.baseline_step(
                spec, config.finetune, config.predictor, reduction, self.source.sample, self.mesh, consistency
            ),
            config.finetune.batch,
            (key, teacher),
            ("loss", "accuracy"),
            self.validator(spec, {"val_accuracy": self.largest if reduction is None else reduction}),
        )["ema"]

    def _meta_start(self, seed: int) -> Callable[[Any], Any]:
        """(fresh parameters) -> those that stage one starts from, by `meta.init_from`."""
        spec, origin = self.meta_spec, self.config.meta.init_from
        if origin != "dense":
            return lambda fresh: load_initial_params(origin, spec, fresh)
        dense_spec, dense = self.spec(self.config.token_modes[0]), self.dense(seed)
        return lambda fresh: meta_from_dense(dense, dense_spec, spec, fresh)

    def _teacher(self, seed: int) -> Any:
        """Parameters of the teacher of stage three, by `finetune.teacher`."""
        teachers = {
            "meta": lambda: self.meta(seed),
            "dense": lambda: self.dense(seed),
            "dense_tuned": lambda: self.finetuned_baseline(seed, "dense", None),
        }
        return teachers[self.config.finetune.teacher]()
