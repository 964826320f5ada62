"""The stages on a tiny network: one seed, one result, whatever interrupts it; every row of the table comes out."""

import shutil
from pathlib import Path

import chex
import jax
import numpy as np
import pytest

from prance_jax.adaptive.rounding import BucketedPolicy
from prance_jax.config import io
from prance_jax.config.experiment import Config
from prance_jax.core.errors import UserError
from prance_jax.experiments.experiment import Experiment
from prance_jax.experiments.main_table import table_entries
from prance_jax.models.vit import ViT
from prance_jax.results.evaluate_rows import evaluate_rows
from prance_jax.training import loop
from prance_jax.training.checkpoint import Checkpoints
from prance_jax.training.metrics import read_metrics
from prance_jax.training.progress import Progress
from prance_jax.training.stages import pretrain
from prance_jax.training.workdir import Workdir
from prance_jax.zoo.formats.files import save_weights
from prance_jax.zoo.load import flatten_params

CONFIG = Path(__file__).parents[1] / "tiny_config.py"


class Killed(BaseException):
    """As sudden as SIGKILL: nothing in the loop catches it."""


class KillingProgress(Progress):
    """Dies at a step of a stage."""

    def __init__(self, stage=None, step=None):
        super().__init__(quiet=True)
        self.victim = stage, step

    def start(self, name, steps, done=0):
        self.name = name
        super().start(name, steps, done)

    def update(self, step, values=None):
        if (self.name, step) == self.victim:
            raise Killed


def experiment(path, progress=None, *overrides):
    config = io.load_config(CONFIG, Config, overrides)
    return Experiment(config, Workdir(path), progress or Progress(quiet=True))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing interrupted."""
    run = experiment(tmp_path_factory.mktemp("whole"))
    return run, table_entries(run, 0)


def without_time(path):
    return [{key: value for key, value in line.items() if key != "seconds"} for line in read_metrics(path)]


@pytest.mark.parametrize("stage", ["dense", "meta", "prune/selector", "prune/finetune"])
def test_killed_and_continued_is_bit_identical(stage, whole, tmp_path, monkeypatch):
    monkeypatch.setattr(
        loop, "_SAVE_SHARE", 1e9
    )  # a checkpoint at every step, so that there is something to continue
    with pytest.raises(Killed):
        table_entries(
            experiment(tmp_path, KillingProgress(f"seed0/{stage}", 3), "--config.checkpoint_seconds=0"), 0
        )
    again = experiment(tmp_path, None, "--config.checkpoint_seconds=0")
    rows = table_entries(again, 0)
    for row, expected in zip(rows, whole[1]):
        assert row.method == expected.method
        chex.assert_trees_all_equal(
            (row.params, row.policy_params), (expected.params, expected.policy_params)
        )
    assert without_time(again.workdir.metrics_file) == without_time(whole[0].workdir.metrics_file)


def test_validation_is_the_evaluation_of_the_first_images(whole):
    """tiny_config validates at steps 4 and 6 on 30 images; at the last step that is the final network."""
    run, rows = whole
    entries = {row.method: row for row in rows}
    lines = [line for line in read_metrics(run.workdir.metrics_file) if "val_accuracy" in line]
    assert {line["step"] for line in lines} == {4, 6}
    last = {line["stage"]: line for line in lines if line["step"] == 6}
    assert set(last) == {"seed0/dense", "seed0/meta", "seed0/prune/finetune"}
    for stage, method in (("dense", "dense"), ("meta", "meta_largest"), ("prune/finetune", "prance_prune")):
        accuracy = run.evaluate(entries[method], "validation").correct[:30].mean()
        assert last[f"seed0/{stage}"]["val_accuracy"] == pytest.approx(accuracy)
    assert 0 <= last["seed0/meta"]["val_accuracy_smallest"] <= 1


def test_the_best_step_instead_of_the_last_one(whole):
    """The run's own checkpoints: with `best` a stage hands on the one with the highest score."""
    settings = "--config.validation.use_checkpoint=best", "--config.validation.every=4"
    run = Experiment(
        io.load_config(CONFIG, Config, settings),
        whole[0].workdir,
        Progress(quiet=True),
        train=False,
    )
    lines = [line for line in read_metrics(run.workdir.metrics_file) if line["stage"] == "seed0/dense"]
    scores = {line["step"]: line["val_accuracy"] for line in lines}
    best = min(step for step, score in scores.items() if score == max(scores.values()))
    steps = Checkpoints(run.workdir.checkpoints / "seed0/dense").steps()
    assert best in steps and steps[-1] == 6
    spec = run.spec("prune")
    example = pretrain.init_pretrain(spec, run.config.dense, run.key(0, "init"))
    expected = Checkpoints(run.workdir.checkpoints / "seed0/dense").restore(example, best)["ema"]
    chex.assert_trees_all_equal(run.dense(0), expected)


def test_every_row_of_the_table(whole):
    run, _ = whole
    (results,) = evaluate_rows(run, "a command", lambda: 1.0)
    rows = {row.method: row for row in results.rows}
    assert list(rows) == [
        *("dense", "meta_largest", "best_static", "random_policy"),
        *("tome", "evit", "prance_prune"),
    ]
    for name in ("tome", "evit"):
        assert (
            abs(rows[name].macs_kept - rows["prance_prune"].macs_kept) < 0.1 and rows[name].images_per_s > 0
        )
    assert results.images == 50 and rows["dense"].macs_kept == 1.0 and rows["dense"].top1_change == 0.0
    assert rows["best_static"].gmacs <= rows["prance_prune"].gmacs * 1.02
    assert rows["prance_prune"].tokens_left < 1 or rows["prance_prune"].macs_kept < 1
    for row in rows.values():
        assert 0 <= row.top1 <= 1 and 0 < row.tokens_left <= 1 and row.active_params > 0
        assert row.top1_change == pytest.approx((row.won - row.lost) / 50)
    assert rows["dense"].images_per_s > 0 and rows["prance_prune"].images_per_s > 0
    assert rows["random_policy"].images_per_s is None


def test_every_image_counts_once(whole):
    """50 test images in batches of 32: the padding of the last batch is cut off."""
    run, rows = whole
    evaluation = run.evaluate(rows[-1], "test")
    assert evaluation.correct.shape == evaluation.macs.shape == (50,)
    other = experiment(run.workdir.path, None, "--config.evaluation.batch=25").evaluate(rows[-1], "test")
    np.testing.assert_array_equal(evaluation.predicted, other.predicted)
    np.testing.assert_allclose(evaluation.macs, other.macs, rtol=1e-6)


def test_who_teaches_stage_three(whole, tmp_path):
    """Taught by the dense network that was tuned: that stage is trained first, and shows in what is learned."""
    path = tmp_path / "run"
    shutil.copytree(whole[0].workdir.path, path)
    shutil.rmtree(path / "checkpoints/seed0/prune/finetune")
    overrides = "--config.finetune.teacher=dense_tuned", "--config.finetune.distillation=1.0"
    row = experiment(path, None, *overrides).prance(0, "prune")
    stages = [line["stage"] for line in read_metrics(path / "metrics.jsonl")]
    assert stages.index("seed0/compare/dense") < len(stages) - 1 - stages[::-1].index("seed0/prune/finetune")
    moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), row.params, whole[1][-1].params)
    assert max(jax.tree.leaves(moved)) > 0
    chex.assert_trees_all_equal(row.policy_params, whole[1][-1].policy_params)
    with pytest.raises(UserError, match="finetune.teacher = 'nobody' is not known; choose one of 'meta'"):
        experiment(path, None, "--config.finetune.teacher=nobody")


def test_nothing_compiles_again_for_another_seed(whole, tmp_path):
    """Seeds are data: the second seed's stages run in the programs of the first."""
    run = experiment(tmp_path, None, "--config.seeds=3")
    names = []
    previous = jax.config.jax_log_compiles
    with jax.log_compiles():
        import logging

        class Listen(logging.Handler):
            def emit(self, record):
                if "Finished XLA compilation of jit(step)" in record.getMessage():
                    names.append(record.getMessage())

        listener = Listen()
        logging.getLogger("jax._src.dispatch").addHandler(listener)
        run.policy_params(3, "prune")
        logging.getLogger("jax._src.dispatch").removeHandler(listener)
    assert not names, names
    assert jax.config.jax_log_compiles == previous


def test_rows_at_budgets(tmp_path):
    """One network and one selector at every budget, on plans, beside a selector for each budget."""
    run = experiment(
        tmp_path,
        None,
        "--config.selector.cost_weights=(-0.05,0.5)",
        "--config.budgets=(0.01,1.0)",
        "--config.baselines.single_budget=True",
        "--config.finetune.round_to_buckets=True",
        "--config.finetune.every_budget_steps=8",
        "--config.baselines.reductions=('tome',)",
    )
    notes = []
    run.progress.note = notes.append
    rows = table_entries(run, 0)
    names = ["single_prune_1", "prance_prune_1", "single_prune_100", "prance_prune_100"]
    names += ["tome_1", "tome_100"]
    assert [row.method for row in rows] == ["dense", "meta_largest", *names]
    low, high = rows[3], rows[5]
    assert low.params is high.params and low.policy_params.policy_params is high.policy_params.policy_params
    assert float(low.policy_params.cost_weight) >= float(high.policy_params.cost_weight)
    assert all(isinstance(row.policy, BucketedPolicy) for row in rows[2:6])
    assert low.policy == high.policy
    last = {line["stage"]: line["step"] for line in read_metrics(run.workdir.metrics_file)}
    assert last["seed0/prune/finetune"] == 8 and last["seed0/prune/finetune_100"] == 6
    # No structure costs a hundredth: a note says so, and the row shows the nearest budget.
    assert any("budget 0.01 is outside the range of this selector" in note for note in notes)
    assert run.evaluate(low, "validation").macs.mean() <= run.evaluate(high, "validation").macs.mean()


def test_stage_one_starts_from_the_dense_network(tmp_path):
    """No step of stage one taken, its largest structure is the run's own dense network; a stage once begun needs no source."""
    steps = ("--config.dense.steps=0", "--config.meta.steps=0")
    run = experiment(tmp_path / "dense", None, *steps, "--config.meta.init_from=dense")
    spec, images = run.meta_spec, run.source.split("test").images[:4]
    model = ViT(spec)
    logits = jax.jit(lambda params: model.apply({"params": params}, images))
    largest = [np.asarray(logits(params)) for params in (run.dense(0), run.meta(0))]
    np.testing.assert_allclose(*largest, atol=1e-5 * np.abs(largest[0]).max(), rtol=0)
    ranked = run.meta(0)["block_0"]["fc1"]["kernel"]
    assert not np.array_equal(ranked, run.dense(0)["block_0"]["fc1"]["kernel"])
    file = tmp_path / "meta.safetensors"
    save_weights(file, flatten_params(run.meta(0)), {})
    again = experiment(tmp_path / "file", None, *steps, f"--config.meta.init_from={file}")
    chex.assert_trees_all_equal(again.meta(0), run.meta(0))
    file.unlink()
    later = experiment(tmp_path / "file", None, *steps, f"--config.meta.init_from={file}")
    chex.assert_trees_all_equal(later.meta(0), run.meta(0))
    save_weights(file, flatten_params(run.dense(0)), {})
    fine_tuned = experiment(tmp_path / "tuned", None, *steps, f"--config.dense.init_from={file}")
    chex.assert_trees_all_equal(fine_tuned.dense(1), run.dense(0))  # of another seed, so not by its own draw
