"""Runs the stages of a config in a workdir: trained once, restored afterwards."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import jax

from prance_jax.baselines.predictor_config import PredictorConfig
from prance_jax.config.experiment import Config
from prance_jax.core.errors import UserError
from prance_jax.core.sharding import check_batch_sizes, fetch_local, make_mesh, replicate, shard_state
from prance_jax.data.load import load_source
from prance_jax.data.prefetch import prefetch_to_device
from prance_jax.evaluation.evaluate import evaluate
from prance_jax.models.reduction import ScheduledReduction
from prance_jax.selector.policies import DecisionPolicy, StaticPolicy
from prance_jax.spec.model_spec import ModelSpec
from prance_jax.training.checkpoint import Checkpoints
from prance_jax.training.loop import Stage, run_stage
from prance_jax.training.metrics import MetricsWriter, Progress
from prance_jax.training.tensorboard import Events
from prance_jax.training.workdir import Workdir

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
class TableEntry:
    """A row of the table: a rule, a token reduction or learned selectors, with the parameters that it runs on.
    decision_cost: MACs of one decision."""

    method: str
    spec: ModelSpec
    policy: DecisionPolicy | ScheduledReduction | PredictorConfig
    params: Any
    policy_params: Any = None
    decision_cost: int = 0


class StageRunner:
    """The stages of a config in a workdir; every method returns what is there or trains it first."""

    def __init__(self, config: Config, workdir: Workdir, progress: Progress, *, train: bool = True):
        """train: whether a stage that is not there is trained; else it is a UserError."""
        self.config, self.workdir, self.progress, self.train = config, workdir, progress, train
        self.source, self.mesh = load_source(config.data), make_mesh(config.mesh)
        stages = ("dense", "meta", "selector", "finetune")
        check_batch_sizes(self.mesh, **{f"{name}.batch": getattr(config, name).batch for name in stages})
        check_batch_sizes(self.mesh, **{"evaluation.batch": config.evaluation.batch})
        self.metrics = MetricsWriter(workdir.metrics_file, Events(workdir.events, progress.note))
        self._finished: dict[str, Any] = {}

    def spec(self, mode: str) -> ModelSpec:
        return self.config.spec(self.source, mode)

    @property
    def largest(self) -> StaticPolicy:
        """The rule of the dense network."""
        return StaticPolicy(self.spec(self.config.token_modes[0]).largest)

    def key(self, seed: int, stream: str, mode: str = "") -> jax.Array:
        key = jax.random.fold_in(jax.random.key(seed), _STREAMS.index(stream))
        return jax.random.fold_in(key, self.config.token_modes.index(mode)) if mode else key

    def evaluate(self, row: TableEntry, split: str):
        """An `Evaluation` of a row on 'validation' or 'test'."""
        return evaluate(
            row.spec,
            row.policy,
            row.params,
            row.policy_params,
            self.source.split(split),
            batch=self.config.evaluation.batch,
            decision_cost=row.decision_cost,
            mesh=self.mesh,
        )

    def train_stage(self, name, steps, init, step, batch, arguments, headline) -> Any:
        """A stage whose step is (state, index, key, tables, *rest) for `arguments` (key, *rest)."""
        held: list = []

        def placed(state, index):
            if not held:
                held.append(replicate(self.mesh, arguments))
                held.append(prefetch_to_device(self.source, batch, int(index), self.mesh))
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
            placed = dataclasses.replace(stage, init=lambda: shard_state(self.mesh, stage.init()))
            state = run_stage(
                placed,
                self.workdir.checkpoints,
                self.metrics,
                checkpoint_seconds=self.config.checkpoint_seconds,
                progress=self.progress,
            )
            self._finished[stage.name] = fetch_local(state)
        return self._finished[stage.name]


def percent(budget: float | None) -> str:
    return "" if budget is None else f"_{round(100 * budget)}"
