"""Progressive insertion of SPViT's token predictors, from the last layer to the first.

A predictor is placed before the last layer and its keep rate is lowered step by step. The network
is fine-tuned after every step. When the accuracy has dropped too far, the last keep rate before
that stays, and the layer before is next. If already the first step costs too much, insertion ends,
since earlier layers are more sensitive. It also ends when the target is met. Neighbouring layers of
nearly equal keep rates become one phase, with the predictor and the keep rate of its first layer,
and everything is fine-tuned once more together. The paper does not say against what a drop is
counted. Here it is the dense network, so that no setting is ever further below it.

Reference: SPViT (Kong et al. 2022, arXiv 2112.13890).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from prance_jax.baselines.predictor_config import PredictorConfig
from prance_jax.experiments.experiment import Experiment
from prance_jax.experiments.stage_runner import TableEntry
from prance_jax.experiments.targets import Target, predictor_heads
from prance_jax.training.checkpoint import Checkpoints
from prance_jax.training.stages import baseline_finetune

Tree = Any


class Setting(NamedTuple):
    """Where token predictors stand.

    Attributes:
      layers: layers, from 0 and rising, before which a predictor stands.
      keep_rates: share of the original patches that each keeps.
    """

    layers: tuple[int, ...] = ()
    keep_rates: tuple[float, ...] = ()


def insert_predictors(
    depth: int,
    shares: tuple[float, ...],
    acceptable: Callable[[Setting], bool],
    met: Callable[[Setting], bool],
) -> Setting:
    """Returns the final setting: predictors before consecutive layers, up to the last one.

    Args:
      depth: number of layers.
      shares: keep rates to try, falling. A layer never keeps less than the next one: removed
        patches stay removed.
      acceptable: whether the accuracy under a setting is high enough. It is called only for
        settings one step beyond an acceptable one, see `previous_setting`.
      met: whether a setting is cheap enough to end.
    """
    setting = Setting()
    for layer in reversed(range(depth)):
        if setting.layers and met(setting):
            break
        lowered = _lowered(layer, setting, shares, acceptable, met)
        if lowered == setting:
            break
        setting = lowered
    return setting


def _lowered(layer: int, setting: Setting, shares, acceptable, met) -> Setting:
    """Adds a predictor at `layer` that keeps as little as is acceptable, or as meets the target."""
    floor, best = max(setting.keep_rates, default=0.0), setting
    for share in shares:
        trial = Setting((layer, *setting.layers), (share, *setting.keep_rates))
        if share < floor or not acceptable(trial):
            break
        best = trial
        if met(trial):
            break
    return best


def previous_setting(setting: Setting, shares: tuple[float, ...]) -> Setting:
    """Returns the setting one step before: first keep rate a step higher, or no such predictor.

    Args:
      setting: with at least one predictor.
      shares: keep rates to try, falling.
    """
    layers, (first, *later) = setting.layers, setting.keep_rates
    step = shares.index(first)
    return Setting(layers, (shares[step - 1], *later)) if step else Setting(layers[1:], tuple(later))


def merge_phases(setting: Setting, min_difference: float) -> Setting:
    """Merges neighbouring layers of nearly equal keep rates into one phase.

    A phase has the predictor and the keep rate of its first layer.

    Args:
      setting: a predictor before each layer.
      min_difference: layers whose keep rate is below that of the phase's first layer by less than
        this join it.
    """
    layers, keep_rates = [], []
    for layer, share in zip(*setting):
        # Rounded, so that 0.5 - 0.415 is 0.085 and not less.
        if not keep_rates or round(keep_rates[-1] - share, 9) >= min_difference:
            layers.append(layer)
            keep_rates.append(share)
    return Setting(tuple(layers), tuple(keep_rates))


class Insertion:
    """Progressive insertion on the dense network of an experiment.

    Every fine-tuning is a stage, named after its setting. What another target or an interrupted run
    has trained is restored, and its accuracies lead to the same decisions.
    """

    def __init__(self, experiment: Experiment, seed: int):
        """Evaluates the dense network on the validation images.

        Args:
          experiment: the run.
          seed: of the run.
        """
        self.experiment, self.seed = experiment, seed
        self.spec = experiment.spec(experiment.config.token_modes[0])
        self.compare = experiment.config.compare
        self.config = self.compare.insertion
        self.dense = experiment.dense(seed)
        entry = TableEntry("dense", self.spec, experiment.largest, self.dense, ())
        self.lowest = experiment.evaluate(entry, "validation").top1 - self.config.drop
        self.accuracies: dict[Setting, float] = {}

    def run(self, target: Target) -> tuple[PredictorConfig, Tree] | None:
        """Inserts predictors for a target.

        Returns:
          The predictors and the parameters fine-tuned under them; None if even the first step costs
          too much accuracy.
        """
        config = self.config
        merged = lambda setting: self.predictor(merge_phases(setting, config.phase))
        setting = insert_predictors(
            self.spec.space.depth, config.shares, self.acceptable, lambda setting: target.met(merged(setting))
        )
        if not setting.layers:
            return None
        name, finetune = f"spvit_inserted{target.label}", self.compare.finetune
        params = self._finetuned(name, merged(setting), finetune, lambda: self.params(setting), 0)
        return merged(setting), params

    def predictor(self, setting: Setting) -> PredictorConfig:
        """Returns SPViT's predictors at a setting."""
        return PredictorConfig(True, *setting, predictor_heads(self.spec, "spvit", self.compare))

    def acceptable(self, setting: Setting) -> bool:
        """Returns whether validation accuracy is high enough after fine-tuning under a setting."""
        if setting not in self.accuracies:
            entry = TableEntry("", self.spec, self.predictor(setting), self.params(setting), ())
            accuracy = self.experiment.evaluate(entry, "validation").top1
            self.experiment.progress.note(
                f"seed{self.seed}: predictors {_name(setting)}: "
                f"{100 * accuracy:.2f} % of the validation images correct, {100 * self.lowest:.2f} required"
            )
            self.accuracies[setting] = accuracy
        # Shares of the same images: a difference below rounding is none.
        return self.accuracies[setting] >= self.lowest - 1e-9

    def params(self, setting: Setting) -> Tree:
        """Returns the parameters fine-tuned step by step to a setting, from the dense network."""
        if not setting.layers:
            return self.dense
        finetune = dataclasses.replace(self.compare.finetune, steps=self.config.steps)
        start = lambda: self.params(previous_setting(setting, self.config.shares))
        # The first layer and its keep rate choose the random stream, so that each trial sees other images.
        stream = (
            1 + setting.layers[0] * len(self.config.shares) + self.config.shares.index(setting.keep_rates[0])
        )
        name = f"spvit_inserted/{_name(setting)}"
        return self._finetuned(name, self.predictor(setting), finetune, start, stream)

    def _finetuned(
        self, name: str, predictor: PredictorConfig, config, start: Callable[[], Tree], stream: int
    ) -> Tree:
        """Parameters fine-tuned under predictors, from those of `start`."""
        experiment, stage = self.experiment, f"seed{self.seed}/compare/{name}"
        key = jax.random.fold_in(experiment.key(self.seed, "tune"), stream)
        has_begun = Checkpoints(experiment.workdir.checkpoints / stage).latest() is not None
        # Keep rates are an argument, so that one program serves all of them at the same layers.
        any_rates = dataclasses.replace(predictor, keep_rates=(1.0,) * len(predictor.layers))
        step = baseline_finetune.baseline_step(
            self.spec, config, self.compare.predictor, any_rates, experiment.source.sample, experiment.mesh
        )
        state = experiment.train_stage(
            stage,
            config.steps,
            # A stage with a checkpoint needs the structure of its state alone, not the stages before it.
            lambda: baseline_finetune.init_baseline(
                self.spec,
                predictor,
                self.dense if has_begun else start(),
                config,
                key,
                at_shares=True,
            ),
            step,
            config.batch,
            (key, self.dense, jnp.asarray(predictor.keep_rates, jnp.float32)),
            ("loss", "accuracy"),
        )
        experiment.forget(stage)  # there are many
        return state["ema"]


def _name(setting: Setting) -> str:
    """Layers, counted from 0, and the keep rates in per cent: '9_80-10_50-11_10'."""
    return "-".join(f"{layer}_{100 * share:g}" for layer, share in zip(*setting))
