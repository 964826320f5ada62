"""One experiment: for every seed the dense baseline, stage one, and per token mode stages two and three.

Stages are named seedN/dense, seedN/meta, seedN/MODE/selector, seedN/MODE/finetune (and .../finetune_random,
.../finetune_static for baselines that get a stage three of their own). Each is restored when it is there.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Callable

import jax

from prance_jax.adaptive.bucket_latency import load_latency
from prance_jax.adaptive.buckets import Plans, choose_plans
from prance_jax.adaptive.calibrate import calibrated_ladder, decisions
from prance_jax.adaptive.rounding import RoundedRule
from prance_jax.baselines.predictor_vit import Selective
from prance_jax.config.experiment import Config
from prance_jax.core.errors import UserError
from prance_jax.core.sharding import check_rows, local, make_mesh, place, replicate
from prance_jax.data.load import load_source
from prance_jax.data.prefetch import feed
from prance_jax.evaluation.evaluate import evaluate
from prance_jax.models.reduction import Reduction
from prance_jax.selector.policies import AnyPriceRule, Priced, Rule, StaticRule
from prance_jax.spec.model_spec import ModelSpec
from prance_jax.spec.search_space import GroupChoice
from prance_jax.training.checkpoint import Checkpoints
from prance_jax.training.loop import Stage, run_stage
from prance_jax.training.metrics import MetricsWriter, Progress
from prance_jax.training.stages import baseline_finetune, finetune, pretrain
from prance_jax.training.stages import selector as selector_stage
from prance_jax.training.stages.selector import Selector
from prance_jax.training.tensorboard import Events
from prance_jax.training.workdir import Workdir
from prance_jax.zoo.from_dense import meta_from_dense, start_from

STAGES = ("dense", "meta", "selector", "finetune")
# Every use of randomness has a stream of its own, so that leaving a stage out changes no other.
_STREAMS = (
    "init",
    "dense",
    "meta",
    "selector_init",
    "selector",
    "pool",
    "finetune",
    "finetune_random",
    "finetune_static",
    "tune",
    "segment",  # not used any more; those that follow keep their numbers
    "pit",
)


@dataclass(frozen=True)
class Contender:
    """A row of the table: a rule, a token reduction or learned selectors, with the parameters that it runs on.
    decision_cost: MACs of one decision."""

    method: str
    spec: ModelSpec
    rule: Rule | Reduction | Selective
    params: Any
    variables: Any = None
    decision_cost: int = 0


class Experiment:
    """The stages of a config in a workdir; every method returns what is there or trains it first."""

    def __init__(self, config: Config, workdir: Workdir, progress: Progress, *, train: bool = True):
        """train: whether a stage that is not there is trained; else it is a UserError."""
        self.config, self.workdir, self.progress, self.train = config, workdir, progress, train
        self.source, self.mesh = load_source(config.data), make_mesh(config.mesh)
        stages = ("dense", "meta", "selector", "finetune")
        check_rows(self.mesh, **{f"{name}.batch": getattr(config, name).batch for name in stages})
        check_rows(self.mesh, **{"evaluation.batch": config.evaluation.batch})
        self.metrics = MetricsWriter(workdir.metrics_file, Events(workdir.events, progress.note))
        self._finished: dict[str, Any] = {}
        self._at_budgets: dict[tuple[int, str], list[Contender]] = {}

    def spec(self, mode: str) -> ModelSpec:
        return self.config.spec(self.source, mode)

    @property
    def meta_spec(self) -> ModelSpec:
        """Stage one serves all token modes: with several of them it trains prune_merge, which holds the other two."""
        modes = self.config.token_modes
        return self.spec(modes[0] if len(modes) == 1 else "prune_merge")

    @property
    def largest(self) -> StaticRule:
        """The rule of the dense network."""
        return StaticRule(self.spec(self.config.token_modes[0]).largest)

    def first_group(self) -> GroupChoice:
        return self.meta_spec.space.first_group(self.config.model.first_group)

    def selector(self, mode: str, budget: float | None = None) -> Selector:
        """The config's selector, or the same trained for one budget alone."""
        config = self.config.selector
        if budget is not None:
            reward = dataclasses.replace(config.reward, target_macs=budget)
            config = dataclasses.replace(config, prices=None, reward=reward)
        spec, table = self.spec(mode), None
        if config.latency_table is not None:
            table = load_latency(config.latency_table, spec)
        return Selector(spec, config, self.first_group(), table, self.mesh)

    def key(self, seed: int, stream: str, mode: str = "") -> jax.Array:
        key = jax.random.fold_in(jax.random.key(seed), _STREAMS.index(stream))
        return jax.random.fold_in(key, self.config.token_modes.index(mode)) if mode else key

    def dense(self, seed: int) -> Any:
        """Parameters of the dense network, trained alone."""
        spec, config = self.spec(self.config.token_modes[0]), self.config.dense
        step = pretrain.dense_step(spec, config, self.source.sample, self.mesh)
        state = self.train_stage(
            f"seed{seed}/dense",
            config.steps,
            lambda: pretrain.init(spec, config, self.key(seed, "init")),
            step,
            config.batch,
            (self.key(seed, "dense"),),
            ("loss", "accuracy"),
        )
        return state["ema"]

    def tuned(
        self, seed: int, name: str, what: Reduction | Selective | None, consistent: bool = False
    ) -> Any:
        """Parameters of the dense network tuned under another method, with itself as the teacher, by `compare.finetune`; None:
        as it is. name: of the stage. consistent: with MCTF's consistency."""
        spec, config = self.spec(self.config.token_modes[0]), self.config.compare
        teacher, key = self.dense(seed), self.key(seed, "tune")
        consistency = config.consistency if consistent else None
        return self.train_stage(
            f"seed{seed}/compare/{name}",
            config.finetune.steps,
            lambda: baseline_finetune.init(spec, what, teacher, config.finetune, key),
            baseline_finetune.tune_step(
                spec, config.finetune, config.selective, what, self.source.sample, self.mesh, consistency
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
            lambda: pretrain.init(spec, config, self.key(seed, "init"), start),
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
            return lambda fresh: start_from(origin, spec, fresh)
        source, dense = self.spec(self.config.token_modes[0]), self.dense(seed)
        return lambda fresh: meta_from_dense(dense, source, spec, fresh)

    def policy(self, seed: int, mode: str, budget: float | None = None) -> Any:
        """The selector's policy after stage two; budget: as in `prance`."""
        selector = self.selector(mode, budget)
        name = f"seed{seed}/{mode}/selector{percent(budget)}"
        params = self.meta(seed)
        held: list = []

        def step(state, index):
            if not held:
                key = self.key(seed, "pool")
                pool = selector_stage.pool(selector, params, self.source, key)
                arguments = self.key(seed, "selector", mode), params, *pool
                held.append(replicate(self.mesh, arguments))
            return selector_stage.select_step(selector)(state, index, *held[0])

        stage = Stage(
            name,
            selector.config.updates,
            lambda: selector.init(self.key(seed, "selector_init", mode)),
            step,
            ("reward", "correct", "macs_kept"),
        )
        return self._stage(stage)["ppo"].policy

    def finetuned(
        self, seed: int, mode: str, kind: str, rule: Rule, variables: Any, budget: float | None = None
    ) -> Any:
        """Parameters after stage three under a rule. kind: 'finetune', 'finetune_random' or 'finetune_static'; budget:
        as in `prance`."""
        start, config, spec = self.meta(seed), self.config.finetune, self.spec(mode)
        if isinstance(rule, AnyPriceRule) and config.every_budget_steps is not None:
            config = dataclasses.replace(config, steps=config.every_budget_steps)
        return self.train_stage(
            f"seed{seed}/{mode}/{kind}{percent(budget)}",
            config.steps,
            lambda: finetune.init(start, config),
            finetune.finetune_step(spec, config, rule, self.source.sample, self.mesh),
            config.batch,
            (self.key(seed, kind, mode), variables, self._teacher(seed)),
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

    def prance(self, seed: int, mode: str, budget: float | None = None) -> Contender:
        """A selector and the network tuned under it; the policy, without a price where it was trained for every budget.

        budget: of a selector trained for this share of dense MACs alone; by default the one of the config.
        """
        selector, policy = self.selector(mode, budget), self.policy(seed, mode, budget)
        rule, prices = selector.rule, selector.config.prices
        if self.config.finetune.on_plans:
            rule = RoundedRule(rule, self.plans(seed, selector, policy))
        tuned_under = rule if prices is None else AnyPriceRule(rule, prices)
        params = self.finetuned(seed, mode, "finetune", tuned_under, policy, budget)
        name = f"prance_{mode}" if budget is None else f"single_{mode}{percent(budget)}"
        return Contender(name, self.spec(mode), rule, params, policy, selector.decision_cost)

    def plans(self, seed: int, selector: Selector, policy: Any) -> Plans:
        """The plans of a selector, from what it decides on the validation images with stage one's network."""
        settings, split, params = self.config.evaluation, self.source.split("validation"), self.meta(seed)
        if selector.config.prices is None:
            images = split.images[: settings.calibration_images]
            found = decisions(selector.spec, selector.rule, params, policy, images)
        else:
            _, found = calibrated_ladder(
                selector.spec, selector.rule, params, policy, split, selector.config.prices
            )
        return choose_plans(selector.spec, found, settings.plans, settings.token_multiple)

    def at_budgets(self, seed: int, mode: str) -> list[Contender]:
        """The rows of one selector that serves every budget, at prices calibrated on the validation images; before each
        that of a selector trained for its budget alone, where the config asks for it."""
        if (seed, mode) not in self._at_budgets:
            self._at_budgets[seed, mode] = self._calibrated(seed, mode)
        return self._at_budgets[seed, mode]

    def _calibrated(self, seed: int, mode: str) -> list[Contender]:
        every, prices, rows = self.prance(seed, mode), self.config.selector.prices, []
        ladder, _ = calibrated_ladder(
            every.spec,
            every.rule,
            every.params,
            every.variables,
            self.source.split("validation"),
            prices,
            every.decision_cost,
        )
        for budget in self.config.budgets:
            if self.config.baselines.single_budget:
                rows.append(self.prance(seed, mode, budget))
            lowest, highest = ladder.range
            if not lowest <= budget <= highest:
                self.progress.note(
                    f"budget {budget:g} is beyond what this selector spends, {lowest:.2f} to {highest:.2f}: "
                    "its row shows the nearest that there is"
                )
            variables = Priced(every.variables, ladder.price(min(max(budget, lowest), highest)))
            name = f"{every.method}{percent(budget)}"
            rows.append(dataclasses.replace(every, method=name, variables=variables))
        return rows

    def evaluate(self, row: Contender, split: str):
        """An `Evaluation` of a row on 'validation' or 'test'."""
        return evaluate(
            row.spec,
            row.rule,
            row.params,
            row.variables,
            self.source.split(split),
            batch=self.config.evaluation.batch,
            decision_cost=row.decision_cost,
            mesh=self.mesh,
        )

    def run(self, stage: str) -> None:
        """Trains one stage for all seeds and modes; those before it must be there or are trained first."""
        for seed in self.config.seeds:
            if stage == "dense":
                self.dense(seed)
            elif stage == "meta":
                self.meta(seed)
            else:
                for mode in self.config.token_modes:
                    self.policy(seed, mode) if stage == "selector" else self.prance(seed, mode)

    def train_stage(self, name, steps, init, step, batch, arguments, headline) -> Any:
        """A stage whose step is (state, index, key, tables, *rest) for `arguments` (key, *rest)."""
        held: list = []

        def placed(state, index):
            if not held:
                held.append(replicate(self.mesh, arguments))
                held.append(feed(self.source, batch, int(index), self.mesh))
            key, *rest = held[0]
            return step(state, index, key, next(held[1]), *rest)

        return self._stage(Stage(name, steps, init, placed, headline))

    def forget(self, name: str) -> None:
        """Frees the memory of a finished stage; its checkpoint stays, and `train_stage` restores it."""
        self._finished.pop(name, None)

    def _stage(self, stage: Stage) -> Any:
        if stage.name not in self._finished:
            there = Checkpoints(self.workdir.checkpoints / stage.name).latest()
            if not self.train and there != stage.steps:
                raise UserError(
                    f"{self.workdir.path}: stage {stage.name} is at step {there or 0} of {stage.steps}; "
                    "run the train command on this workdir first"
                )
            placed = dataclasses.replace(stage, init=lambda: place(self.mesh, stage.init()))
            state = run_stage(
                placed,
                self.workdir.checkpoints,
                self.metrics,
                checkpoint_seconds=self.config.checkpoint_seconds,
                progress=self.progress,
            )
            self._finished[stage.name] = local(state)
        return self._finished[stage.name]


def percent(budget: float | None) -> str:
    return "" if budget is None else f"_{round(100 * budget)}"
