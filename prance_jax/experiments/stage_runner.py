"""Runs the stages of a config in a workdir: each is trained once and restored afterwards."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from prance_jax.baselines.predictor_config import PredictorConfig
from prance_jax.config.experiment import Config
from prance_jax.core.errors import UserError
from prance_jax.core.sharding import check_batch_sizes, fetch_local, make_mesh, replicate, shard_state
from prance_jax.data.load import load_source
from prance_jax.data.prefetch import prefetch_to_device
from prance_jax.data.source import Source, Split, check_one_label
from prance_jax.evaluation.evaluate import Evaluation, evaluate
from prance_jax.models.reduction import ScheduledReduction
from prance_jax.selector.policies import DecisionPolicy, StaticPolicy
from prance_jax.spec.model_spec import ModelSpec
from prance_jax.training.loop import Stage, restore_stage, run_stage
from prance_jax.training.metrics import MetricsWriter
from prance_jax.training.optimizer import make_optimizer
from prance_jax.training.progress import Progress
from prance_jax.training.tensorboard import TensorBoardWriter
from prance_jax.training.workdir import Workdir
from prance_jax.zoo.hub import is_address

# Every use of randomness has its own stream: leaving out a stage changes no other. The order is fixed.
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
    "segment",  # no longer used; the later ones keep their numbers
    "pit",
)


@dataclass(frozen=True)
class TableEntry:
    """A row of a table before it is evaluated: a policy or reduction, and its parameters.

    Attributes:
      method: key of the row, for example ``prance_prune_30``.
      spec: the network.
      policy: a decision policy, a schedule of token reductions, or token predictors.
      params: parameters of the network (and of the token predictors).
      policy_params: what the policy decides by, for example the trained selector; None or () if it
        has no parameters.
      decision_cost: MACs of one decision.
    """

    method: str
    spec: ModelSpec
    policy: DecisionPolicy | ScheduledReduction | PredictorConfig
    params: Any
    policy_params: Any = None
    decision_cost: int = 0


class StageRunner:
    """Trains stages in a workdir, or restores those that are finished."""

    def __init__(
        self,
        config: Config,
        workdir: Workdir,
        progress: Progress,
        *,
        train: bool = True,
        source: Source | None = None,
    ):
        """Loads the data and checks that batches can be divided over the devices.

        Args:
          config: the configuration of the run.
          workdir: where checkpoints and metrics are kept.
          progress: prints progress and notes.
          train: whether a missing stage is trained; if not, it is a UserError.
          source: the images, for example from `data.arrays.from_arrays`; None for those of `config.data`.

        Raises:
          UserError: batches cannot be divided, or the data set has several labels per image and the config
            needs one.
        """
        self.config, self.workdir, self.progress, self.train = config, workdir, progress, train
        self.source, self.mesh = source or load_source(config.data), make_mesh(config.mesh)
        workdir.check_classes(tuple(map(str, self.source.classes)))
        if config.cascade is not None:
            check_one_label(self.source, "a cascade")
        if config.selector.reward.quality != "agreement":
            check_one_label(self.source, f"selector.reward.quality {config.selector.reward.quality!r}")
        stages = ("dense", "meta", "selector", "finetune")
        check_batch_sizes(self.mesh, **{f"{name}.batch": getattr(config, name).batch for name in stages})
        check_batch_sizes(self.mesh, **{"evaluation.batch": config.evaluation.batch})
        self.metrics = MetricsWriter(workdir.metrics_file, TensorBoardWriter(workdir.events, progress.note))
        self._finished: dict[str, Any] = {}

    def check(self) -> None:
        """Builds networks and optimizers, to find values of the config that cannot work.

        Raises:
          UserError: a value cannot work, or a file that the config names does not exist.
        """
        for mode in self.config.token_modes:
            self.spec(mode)
        for name in ("dense", "meta", "finetune"):
            section = getattr(self.config, name)
            make_optimizer(section.optimizer, section.steps)
        for name in ("dense", "meta"):
            origin = getattr(self.config, name).init_from
            if origin not in (None, "dense") and not is_address(origin) and not Path(origin).exists():
                raise UserError(f"{name}.init_from: {origin} does not exist; give a weight file")

    def spec(self, mode: str) -> ModelSpec:
        """Returns the network of a token mode, for the images of this run."""
        return self.config.spec(self.source, mode)

    @property
    def largest(self) -> StaticPolicy:
        """The policy of the dense network: all tokens and channels."""
        return StaticPolicy(self.spec(self.config.token_modes[0]).largest)

    def key(self, seed: int, stream: str, mode: str = "") -> jax.Array:
        """Returns the random key of one use of randomness.

        Args:
          seed: of the run.
          stream: one of `_STREAMS`.
          mode: token mode, for uses that each mode has of its own.
        """
        key = jax.random.fold_in(jax.random.key(seed), _STREAMS.index(stream))
        return jax.random.fold_in(key, self.config.token_modes.index(mode)) if mode else key

    def evaluate(self, entry: TableEntry, split: str) -> Evaluation:
        """Evaluates an entry of the table on all images of a split.

        Args:
          entry: what to evaluate.
          split: 'validation' or 'test'.
        """
        return evaluate(
            entry.spec,
            entry.policy,
            entry.params,
            entry.policy_params,
            self.source.split(split),
            batch=self.config.evaluation.batch,
            decision_cost=entry.decision_cost,
            mesh=self.mesh,
        )

    def train_stage(
        self,
        name: str,
        steps: int,
        init: Callable[[], Any],
        step: Callable[..., tuple[Any, dict[str, jax.Array]]],
        batch: int,
        arguments: tuple,
        headline: tuple[str, ...],
        validate: Callable[[Any], dict[str, float]] | None = None,
    ) -> Any:
        """Trains a stage on batches of the source, or restores it, and returns the state that it hands on.

        Args:
          name: name of the stage: its folder of checkpoints, and its name in the metrics.
          steps: number of steps.
          init: () -> fresh state.
          step: (state, index, key, tables, *rest) -> (state, metrics); `tables` is a batch of the
            source.
          batch: images per step.
          arguments: (key, *rest) of `step`, copied to every device before the first step.
          headline: metrics in the progress line.
          validate: see `Stage`; from `validator`, for example.
        """
        loaded: list = []

        def run_step(state, index):
            if not loaded:
                loaded.append(replicate(self.mesh, arguments))
                loaded.append(prefetch_to_device(self.source, batch, int(index), self.mesh))
            key, *rest = loaded[0]
            return step(state, index, key, next(loaded[1]), *rest)

        return self.run_or_restore(Stage(name, steps, init, run_step, headline, validate))

    def validator(
        self,
        spec: ModelSpec,
        policies: Mapping[str, DecisionPolicy | ScheduledReduction | PredictorConfig],
        policy_params: Any = (),
    ) -> Callable[[Any], dict[str, float]]:
        """Returns the validation of a stage: (state) -> accuracy of its moving average under each policy.

        With several labels per image it is the mean average precision, `mean_ap` in place of `accuracy`.

        Args:
          spec: the network.
          policies: what the network runs under, by name of the metric.
          policy_params: parameters of the policies.
        """

        def validate(state):
            params, split, batch = (
                fetch_local(state["ema"]),
                self.validation_split,
                self.config.evaluation.batch,
            )
            return {
                name.replace("accuracy", "mean_ap") if spec.multi_label else name: evaluate(
                    spec, policy, params, policy_params, split, batch=batch, mesh=self.mesh
                ).score
                for name, policy in policies.items()
            }

        return validate

    @property
    def validation_split(self) -> Split:
        """The images of a validation while training: as many as there are labels, the first ones."""
        split = self.source.split("validation")
        # A slice of a stream's images would be decoded whole.
        return split._replace(labels=split.labels[: self.config.validation.images], extra={})

    def run_or_restore(self, stage: Stage) -> Any:
        """Runs a stage from its newest checkpoint to its end and returns the state that it hands on.

        Raises:
          UserError: the stage is not finished and this run may not train.
        """
        if stage.name not in self._finished:
            sharded = dataclasses.replace(stage, init=lambda: shard_state(self.mesh, stage.init()))
            if self.train:
                state = run_stage(
                    sharded,
                    self.workdir.checkpoints,
                    self.metrics,
                    checkpoint_seconds=self.config.checkpoint_seconds,
                    validation=self.config.validation,
                    progress=self.progress,
                )
            else:
                state = restore_stage(sharded, self.workdir.checkpoints, self.config.validation)
            self._finished[stage.name] = fetch_local(state)
        return self._finished[stage.name]

    def forget(self, name: str) -> None:
        """Frees the memory of a finished stage; `train_stage` restores it from its checkpoint."""
        self._finished.pop(name, None)


def budget_suffix(budget: float | None) -> str:
    """Returns the end of a row's or stage's name: '_30' for 0.3, '' for None."""
    return "" if budget is None else f"_{round(100 * budget)}"
