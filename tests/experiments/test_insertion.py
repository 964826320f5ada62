"""Progressive insertion: its decisions on an accuracy that can be worked out by hand, and its stages on the tiny network."""

import types
from pathlib import Path

import chex
import jax
import numpy as np
import pytest
from small import drawn_params

from prance_jax.baselines.predictor_config import PredictorConfig
from prance_jax.config import io
from prance_jax.config.experiment import Config
from prance_jax.core.errors import UserError
from prance_jax.experiments.comparison import method_rows
from prance_jax.experiments.experiment import Experiment
from prance_jax.experiments.insertion import (
    Insertion,
    Setting,
    insert_predictors,
    merge_phases,
    previous_setting,
)
from prance_jax.experiments.targets import Target, measurable
from prance_jax.spec.block_latency import BlockLatency, LatencyTargetError, network_name
from prance_jax.training.metrics import read_metrics
from prance_jax.training.progress import Progress
from prance_jax.training.stages import baseline_finetune
from prance_jax.training.workdir import Workdir

CONFIG = Path(__file__).parents[1] / "tiny_config.py"
SHARES = (0.75, 0.5, 0.25)


def inserted(costs, drop, met=lambda setting: False):
    """The setting that insertion ends with, and all settings that it tried. A layer with keep rate s costs (1 - s) x its own
    cost in accuracy."""
    trials = []

    def acceptable(setting):
        trials.append(setting)
        return sum(costs[site] * (1 - share) for site, share in zip(*setting)) <= drop

    return insert_predictors(len(costs), SHARES, acceptable, met), trials


def test_from_the_last_layer_until_one_cannot_be_pruned():
    """Layers 3 and 2 go all the way, 0.0075 and 0.015; layer 1 costs 0.075 at three quarters and 0.15 at a half, of which
    0.0775 are left; layer 0 bears nothing."""
    setting, trials = inserted((1.0, 0.3, 0.02, 0.01), 0.1)
    assert setting == Setting((1, 2, 3), (0.75, 0.25, 0.25))
    tried = [(setting.layers[0], setting.keep_rates[0]) for setting in trials]
    assert tried == [*((3, s) for s in SHARES), *((2, s) for s in SHARES), (1, 0.75), (1, 0.5), (0, 0.75)]
    # What a trial comes from is the network without selectors, or a trial that was borne.
    borne = {Setting(), *trials[:7]}
    assert all(previous_setting(setting, SHARES) in borne for setting in trials)
    assert (
        previous_setting(trials[-2], SHARES) == trials[-3] and previous_setting(trials[-1], SHARES) == setting
    )


def test_a_layer_keeps_no_less_than_the_next():
    """Layer 2 bears a half and no more; layer 1, which would bear anything, stops there."""
    setting, trials = inserted((1.0, 0.0, 0.1, 9.0), 0.05)
    assert (
        setting == Setting() and len(trials) == 1
    )  # already the last layer costs too much: insertion never begins
    setting, trials = inserted((0.0, 0.0, 0.1), 0.05)
    assert setting == Setting((0, 1, 2), (0.5, 0.5, 0.5)) and len(trials) == 7


def test_it_ends_where_the_target_is_met():
    enough = lambda setting: sum(1 - share for share in setting.keep_rates) >= 1.25
    setting, trials = inserted((1.0, 0.3, 0.02, 0.01), 0.1, enough)
    assert setting == Setting((2, 3), (0.5, 0.25)) and len(trials) == 5


def test_neighbours_of_nearly_equal_shares_are_a_phase():
    """Measured against the first of a phase: a slope is not one phase. 0.5 and 0.415 differ by 8.5 points and not by less."""
    setting = Setting((5, 6, 7, 8, 9, 10), (0.9, 0.83, 0.815, 0.8, 0.5, 0.415))
    assert merge_phases(setting, 0.085) == Setting((5, 7, 9, 10), (0.9, 0.815, 0.5, 0.415))
    assert merge_phases(setting, 0.09) == Setting((5, 8, 9), (0.9, 0.8, 0.5))
    assert merge_phases(setting, 0.0) == setting and merge_phases(Setting(), 0.085) == Setting()


class Killed(BaseException):
    pass


class NotedProgress(Progress):
    """Keeps the notes, and dies when the stage `victim` begins."""

    def __init__(self, victim=None):
        super().__init__(quiet=True)
        self.victim, self.notes = victim, []

    def note(self, text):
        self.notes.append(text)

    def start(self, name, steps, done=0):
        if name == self.victim:
            raise Killed
        super().start(name, steps, done)


def experiment(path, progress, *overrides):
    given = (
        "--config.compare.methods=('cait','cdcp','spvit_inserted')",
        "--config.compare.insertion.steps=2",
        "--config.compare.insertion.shares=(0.75,0.5)",
        "--config.compare.insertion.drop=0.75",
    )
    config = io.load_config(CONFIG, Config, (*given, *overrides))
    return Experiment(config, Workdir(path), progress)


@pytest.fixture(autouse=True)
def dense(monkeypatch):
    """Instead of training one."""
    monkeypatch.setattr(Experiment, "dense", lambda self, seed: drawn_params(self.spec("prune")))


def table(run):
    """Of the tiny network, two layers of 17 tokens: a token takes 1 ms in an attention, nothing else takes time."""
    spec = run.spec("prune")
    methods = (("cait", (0.0, 0.0)), ("spvit_1", (0.0, 0.0)))
    return BlockLatency(network_name(spec), (1, 17), (1.0, 17.0), (0.0, 0.0), 34.0, 0.0, methods)


def stages(run):
    names = [line["stage"].removeprefix("seed0/compare/") for line in read_metrics(run.workdir.metrics_file)]
    return [name.removeprefix("spvit_inserted") for name in dict.fromkeys(names)]


def test_stages_of_an_insertion_and_its_continuation(tmp_path, monkeypatch):
    """A tuning that only counts its steps and adds noise of its own stage, and an accuracy that falls by 0.1 for each tenth of the
    patches dropped before layer 0, by 0.05 for those before layer 1."""

    def tune_step(spec, config, predictor, what, sample, mesh):
        def step(state, index, key, tables, teacher, kept):
            noise = jax.random.normal(jax.random.fold_in(key, index)) * kept.sum()
            params = jax.tree.map(lambda leaf: leaf + noise, state["params"])
            return {**state, "params": params, "ema": params}, {"loss": noise, "accuracy": kept[0]}

        return step

    def evaluate(self, row, split):
        assert split == "validation"
        kept = (
            dict(zip(row.policy.layers, row.policy.keep_rates))
            if isinstance(row.policy, PredictorConfig)
            else {}
        )
        return types.SimpleNamespace(top1=0.9 - (1 - kept.get(0, 1)) - (1 - kept.get(1, 1)) / 2)

    monkeypatch.setattr(baseline_finetune, "baseline_step", tune_step)
    monkeypatch.setattr(Experiment, "evaluate", evaluate)
    whole = experiment(tmp_path / "whole", NotedProgress())
    insertion, spec = Insertion(whole, 0), whole.spec("prune")
    # 17 + 14 ms at three quarters before layer 1.
    what, _ = insertion.run(Target(spec, 0.95, table(whole)))
    assert (
        what == PredictorConfig(True, (1,), (0.75,), heads=1) and what.milliseconds(spec, table(whole)) == 31
    )
    # In the end both layers keep a half: one phase, which the first selector serves; 10 + 10 ms.
    hard = Target(spec, 0.6, table(whole))
    what, params = insertion.run(hard)
    assert (
        what == PredictorConfig(True, (0,), (0.5,), heads=1) and what.milliseconds(spec, table(whole)) == 20
    )
    assert set(params) == {"vit", "selector_0"}
    # What the first target had tuned is not tuned again, and every trial goes on from the one before.
    assert stages(whole) == ["/1_75", "_95_time", "/1_50", "/0_75-1_50", "/0_50-1_50", "_60_time"]
    first, second = (insertion.params(Setting((1,), (share,))) for share in (0.75, 0.5))
    moved = np.asarray(second["vit"]["cls_token"] - first["vit"]["cls_token"])
    assert np.ptp(moved) < 1e-5 < abs(moved[0])
    bias = [params["selector_1"]["decide_bias"] for params in (first, second)]
    np.testing.assert_allclose(bias[1] - bias[0], moved[0], rtol=1e-4)
    with pytest.raises(Killed):
        victim = "seed0/compare/spvit_inserted/0_50-1_50"
        Insertion(experiment(tmp_path / "killed", NotedProgress(victim)), 0).run(hard)
    again = experiment(tmp_path / "killed", NotedProgress())
    chex.assert_trees_all_equal(Insertion(again, 0).run(hard), (what, params))
    assert stages(again) == ["/1_75", "/1_50", "/0_75-1_50", "/0_50-1_50", "_60_time"]
    # With less to lose than the 0.5 that layer 0 costs beside layer 1.
    strict = experiment(tmp_path / "whole", NotedProgress(), "--config.compare.insertion.drop=0.25")
    assert Insertion(strict, 0).acceptable(Setting((1,), (0.5,)))
    assert not Insertion(strict, 0).acceptable(Setting((0, 1), (0.75, 0.5)))
    assert "1_50: 65.00 % of the validation images correct, 65.00 required" in strict.progress.notes[0]


def test_a_real_tuning(tmp_path):
    """One selector, trained and evaluated; its share is an argument of the program."""
    run = experiment(
        tmp_path,
        NotedProgress(),
        "--config.compare.insertion.drop=1.0",
        "--config.compare.insertion.shares=(0.5,)",
    )
    target = Target(run.spec("prune"), 0.8, table(run))
    rows = method_rows(run, 0, "spvit_inserted", target, Insertion(run, 0))
    assert [row.method for row in rows] == ["spvit_inserted_tuned_80_time", "spvit_inserted_free_80_time"]
    assert rows[0].policy == PredictorConfig(True, (1,), (0.5,), heads=1) and rows[1].policy.by_threshold
    assert stages(run) == ["/1_50", "_80_time"]
    assert all(0 < line["kept_1"] < 1 for line in read_metrics(run.workdir.metrics_file))


def test_rows_of_a_target_in_time(tmp_path):
    run = experiment(tmp_path, NotedProgress(), "--config.compare.finetune.steps=0")
    target = Target(run.spec("prune"), 0.8, table(run))
    (row,) = method_rows(run, 0, "cait", target, None)
    # Of 4 x 4 patches 2 x 4 in the first layer: 17 + 9 ms of 34; 3 x 4 would be 17 + 13, and further it cannot go.
    assert row.method == "cait_80_time" and row.policy.milliseconds(target.spec, target.table) == 26
    with pytest.raises(LatencyTargetError, match="cait: no setting takes 23.8 ms .* ask for 26 ms or more"):
        method_rows(run, 0, "cait", Target(target.spec, 0.7, target.table), None)
    assert method_rows(run, 0, "spvit_inserted", target, None) == []
    assert measurable(target.spec, run.config.compare) == [
        "cait",
        PredictorConfig(True, (0,), (1.0,), heads=1),
    ]


def test_settings_that_make_no_sense(tmp_path):
    with pytest.raises(UserError, match="insertion.shares = .* descending, none twice"):
        experiment(tmp_path, NotedProgress(), "--config.compare.insertion.shares=(0.5,0.9)")
    with pytest.raises(
        UserError, match="config.compare.insertion.steps = 0 is out of range; it should be from 1"
    ):
        experiment(tmp_path, NotedProgress(), "--config.compare.insertion.steps=0")
