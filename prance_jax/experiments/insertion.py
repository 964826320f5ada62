"""Progressive insertion of SPViT's selectors (Kong et al. 2022, arXiv 2112.13890): from the last layer to the first, then layers
to phases.

A selector comes before the last layer and its kept share is lowered, the network being tuned after every step, until the
accuracy has dropped too far; the lowest share before that stays, and the layer before is next. Where not even the first
step is borne, insertion ends: layers in front are the more sensitive ones. It ends earlier where the target is met.
Neighbours of nearly equal shares become one phase, with the selector and the share of its first layer, and everything is
tuned once more together. The paper does not say against what a drop is counted; here it is the dense network, so that no
setting on the way is ever further below it.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Callable, NamedTuple

import jax
import jax.numpy as jnp

from prance_jax.baselines.predictor_config import PredictorConfig
from prance_jax.experiments.experiment import Experiment
from prance_jax.experiments.stage_runner import TableEntry
from prance_jax.experiments.targets import Target, heads_of
from prance_jax.training.checkpoint import Checkpoints
from prance_jax.training.stages import baseline_finetune

Tree = Any


class Setting(NamedTuple):
    """Layers before which selectors stand, and the share of the original patches that each keeps."""

    layers: tuple[int, ...] = ()
    keep_rates: tuple[float, ...] = ()


def insert_predictors(
    depth: int,
    shares: tuple[float, ...],
    bearable: Callable[[Setting], bool],
    met: Callable[[Setting], bool],
) -> Setting:
    """The setting that insertion ends with; its sites are layers in a row, up to the last.

    shares: falling; a layer never keeps less than the next one, where what is gone stays gone. bearable: whether the
    accuracy under a setting is high enough; only settings one step beyond a bearable one are asked for, see `before`.
    met: whether a setting is cheap enough to end.
    """
    found = Setting()
    for layer in reversed(range(depth)):
        if found.layers and met(found):
            break
        lowered = _lowered(layer, found, shares, bearable, met)
        if lowered == found:
            break
        found = lowered
    return found


def _lowered(layer, found: Setting, shares, bearable, met) -> Setting:
    """`found` with a selector at `layer` that keeps as little as can be borne, or as meets the target."""
    floor, best = max(found.keep_rates, default=0.0), found
    for share in shares:
        trial = Setting((layer, *found.layers), (share, *found.keep_rates))
        if share < floor or not bearable(trial):
            break
        best = trial
        if met(trial):
            break
    return best


def previous_setting(setting: Setting, shares: tuple[float, ...]) -> Setting:
    """The setting from which insertion came to this one: its first share a step higher, or no selector there."""
    layers, (first, *rest) = setting.layers, setting.keep_rates
    step = shares.index(first)
    return Setting(layers, (shares[step - 1], *rest)) if step else Setting(layers[1:], tuple(rest))


def merge_phases(setting: Setting, apart: float) -> Setting:
    """One selector, the first, for layers whose shares differ from that one's by less than `apart`."""
    layers, keep_rates = [], []
    for site, share in zip(*setting):
        # Rounded, so that 0.5 - 0.415 is 0.085 and not less.
        if not keep_rates or round(keep_rates[-1] - share, 9) >= apart:
            layers.append(site)
            keep_rates.append(share)
    return Setting(tuple(layers), tuple(keep_rates))


class Insertion:
    """The same on the dense network of an experiment. Every tuning is a stage, named after its setting: what another target, or
    a run that was stopped, had tuned is restored, and its accuracies lead the same way."""

    def __init__(self, experiment: Experiment, seed: int):
        self.experiment, self.seed = experiment, seed
        self.spec = experiment.spec(experiment.config.token_modes[0])
        self.compare = experiment.config.compare
        self.config = self.compare.insertion
        self.dense = experiment.dense(seed)
        row = TableEntry("dense", self.spec, experiment.largest, self.dense, ())
        self.lowest = experiment.evaluate(row, "validation").top1 - self.config.drop
        self.accuracies: dict[Setting, float] = {}

    def run(self, target: Target) -> tuple[PredictorConfig, Tree] | None:
        """Selectors for a target and the parameters tuned under them; None where not even the last layer bears one."""
        config = self.config
        merged = lambda setting: self.predictor(merge_phases(setting, config.phase))
        found = insert_predictors(
            self.spec.space.depth, config.shares, self.bearable, lambda setting: target.met(merged(setting))
        )
        if not found.layers:
            return None
        name, finetune = f"spvit_inserted{target.label}", self.compare.finetune
        return merged(found), self._tuned(name, merged(found), finetune, lambda: self.params(found), 0)

    def predictor(self, setting: Setting) -> PredictorConfig:
        return PredictorConfig(True, *setting, heads_of(self.spec, "spvit", self.compare))

    def bearable(self, setting: Setting) -> bool:
        """Whether enough validation images are right after the tuning under a setting."""
        if setting not in self.accuracies:
            row = TableEntry("", self.spec, self.predictor(setting), self.params(setting), ())
            found = self.experiment.evaluate(row, "validation").top1
            self.experiment.progress.note(
                f"seed{self.seed}: selectors {_name(setting)}: {100 * found:.2f} % of the validation images right, "
                f"{100 * self.lowest:.2f} wanted"
            )
            self.accuracies[setting] = found
        # Shares of the same images: what differs by less than rounding is equal.
        return self.accuracies[setting] >= self.lowest - 1e-9

    def params(self, setting: Setting) -> Tree:
        """After the tunings that lead to a setting; those of the dense network where there are no selectors."""
        if not setting.layers:
            return self.dense
        finetune = dataclasses.replace(self.compare.finetune, steps=self.config.steps)
        came_from = lambda: self.params(previous_setting(setting, self.config.shares))
        # Layers and shares tell trials apart, so that each sees other images.
        stream = (
            1 + setting.layers[0] * len(self.config.shares) + self.config.shares.index(setting.keep_rates[0])
        )
        name = f"spvit_inserted/{_name(setting)}"
        return self._tuned(name, self.predictor(setting), finetune, came_from, stream)

    def _tuned(self, name, what: PredictorConfig, config, start: Callable[[], Tree], stream: int) -> Tree:
        experiment, stage = self.experiment, f"seed{self.seed}/compare/{name}"
        key = jax.random.fold_in(experiment.key(self.seed, "tune"), stream)
        begun = Checkpoints(experiment.workdir.checkpoints / stage).latest() is not None
        # One program for all shares at the same sites.
        anyhow = dataclasses.replace(what, keep_rates=(1.0,) * len(what.layers))
        step = baseline_finetune.baseline_step(
            self.spec, config, self.compare.predictor, anyhow, experiment.source.sample, experiment.mesh
        )
        state = experiment.train_stage(
            stage,
            config.steps,
            # What was begun needs the structure alone, and not what led there.
            lambda: baseline_finetune.init_baseline(
                self.spec, what, self.dense if begun else start(), config, key, at_shares=True
            ),
            step,
            config.batch,
            (key, self.dense, jnp.asarray(what.keep_rates, jnp.float32)),
            ("loss", "accuracy"),
        )
        experiment.forget(stage)  # there are many of them
        return state["ema"]


def _name(setting: Setting) -> str:
    """Layers, counted from 0, and the shares in per cent: '9_80-10_50-11_10'."""
    return "-".join(f"{site}_{100 * share:g}" for site, share in zip(*setting))
