"""Images with several labels: training, selector, evaluation and table; what needs one label is refused."""

import csv
import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from prance_jax.commands.train import write_pictures
from prance_jax.config import io
from prance_jax.config.cascade import CascadeConfig, LookConfig
from prance_jax.config.experiment import Config
from prance_jax.core.errors import UserError
from prance_jax.data.arrays import from_arrays
from prance_jax.data.augment import AugmentConfig
from prance_jax.data.images.folder import FolderConfig, load_folder_source
from prance_jax.data.images.records import ImagesConfig
from prance_jax.evaluation.average_precision import mean_average_precision
from prance_jax.experiments.experiment import Experiment
from prance_jax.experiments.pit import pit_rows
from prance_jax.experiments.stage_runner import TableEntry
from prance_jax.models.vit import ViT
from prance_jax.results.evaluate_rows import evaluate_rows
from prance_jax.results.table import format_table, save_results
from prance_jax.selector.reward import RewardConfig, prediction_quality
from prance_jax.serving.load import build_adaptive_model
from prance_jax.training.metrics import read_metrics
from prance_jax.training.progress import Progress
from prance_jax.training.workdir import Workdir

CONFIG = Path(__file__).parents[1] / "tiny_config.py"
QUADRANTS = ((0, 0), (0, 5), (5, 0), (5, 5))


def quadrants(count, seed):
    """Grey images whose bright quadrants are their labels: none, one or several of four."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, (count, 4))
    images = rng.integers(0, 40, (count, 10, 10, 1), np.uint8)
    for number, (top, left) in enumerate(QUADRANTS):
        images[:, top : top + 5, left : left + 5] += (200 * labels[:, number]).astype(np.uint8)[
            :, None, None, None
        ]
    return images, labels


def source(**change):
    settings = dict(validation=quadrants(40, 1), test=quadrants(50, 2), mean=0.5, std=0.5)
    return from_arrays(quadrants(64, 0), num_classes=4, **{**settings, **change})


def experiment(path, *overrides):
    settings = (
        "--config.selector.reward.quality=agreement",
        "--config.dense.steps=150",
        "--config.dense.optimizer.learning_rate=0.01",
        "--config.validation.every=150",
        "--config.meta.steps=0",  # the dense network as it is: fewer programs to compile
        "--config.meta.init_from=dense",
        *overrides,
    )
    config = io.load_config(CONFIG, Config, settings)
    return Experiment(config, Workdir(path), Progress(quiet=True), source=source())


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    path = tmp_path_factory.mktemp("quadrants")
    experiment(path).dense(0)
    run = experiment(path, "--config.validation.every=None")  # the other stages need no validation
    dense = TableEntry("dense", run.spec("prune"), run.largest, run.dense(0), ())
    return run, [dense, run.prance(0, "prune")]


def test_the_network_learns_all_labels_of_an_image(trained):
    run, (dense, _) = trained
    split, evaluation = run.source.split("test"), run.evaluate(dense, "test")
    assert dense.spec.multi_label and evaluation.mean_ap > 0.95 > 0.6 > split.labels.mean()
    logits = jax.jit(lambda params: ViT(dense.spec).apply({"params": params}, split.images))(dense.params)
    assert evaluation.mean_ap == pytest.approx(mean_average_precision(split.labels, np.asarray(logits)))
    np.testing.assert_array_equal(evaluation.predicted, np.asarray(logits) > 0)
    np.testing.assert_allclose(evaluation.correct, (evaluation.predicted == split.labels).mean(axis=1))
    assert evaluation.score == evaluation.mean_ap
    last = [line for line in read_metrics(run.workdir.metrics_file) if line["stage"] == "seed0/dense"][-1]
    assert last["val_mean_ap"] > 0.9 and "val_accuracy" not in last


def test_the_selector_sees_right_classes_and_keeps_the_network_trained(trained):
    """The finetuned network starts from one that is right; random labels would be right in half of the classes."""
    run, (dense, prance) = trained
    lines = [line for line in read_metrics(run.workdir.metrics_file) if "selector" in line["stage"]]
    assert 0.6 < lines[-1]["correct"] <= 1 and np.isfinite(lines[-1]["reward"])
    assert run.evaluate(prance, "test").mean_ap > 0.6


def test_the_table_has_the_mean_average_precision_and_no_test_of_pairs(trained):
    run, entries = trained
    (results,) = evaluate_rows(run, "a command", lambda: 1.0, lambda *_: entries)
    dense, prance = results.rows
    assert dense.mean_ap == run.evaluate(entries[0], "test").mean_ap and dense.mean_ap_change == 0
    assert prance.mean_ap_change == pytest.approx(prance.mean_ap - dense.mean_ap)
    assert {dense.top1, dense.won, dense.lost, prance.top1_change} == {None}
    text = format_table(results)
    assert "mAP" in text and "top-1" not in text and "McNemar" not in text
    save_results(results, run.workdir.path)
    assert "needs one label per image" in write_pictures(run, False)
    assert "the report with pictures needs one label per image" in write_pictures(run, True)


def test_a_served_model_lists_all_labels(trained):
    run, (_, prance) = trained
    model, images = build_adaptive_model(run, prance), run.source.split("test").images[:3]
    logits = np.asarray(model(images))
    for explanation, row in zip(model.explain(images), logits):
        assert explanation.predicted == tuple(np.flatnonzero(row > 0))


def test_agreement_is_the_kl_divergence_of_all_labels_together():
    """KL(1/2 || 3/4) = log 2 - (log 3) / 2 for each of two labels; the floor is 4 nats."""
    full, labels = jnp.zeros((2, 2)), jnp.zeros((2, 2), jnp.int32)
    logits = jnp.array([[np.log(3.0), -np.log(3.0)], [20.0, 0.0]])
    quality = prediction_quality(RewardConfig(quality="agreement"), logits, labels, full)
    np.testing.assert_allclose(quality, [-2 * (np.log(2) - np.log(3) / 2), -4.0], rtol=1e-5)
    with pytest.raises(UserError, match="selector.reward.quality is 'probability'.*must be 'agreement'"):
        prediction_quality(RewardConfig(quality="probability"), logits, labels, full)


def test_what_needs_one_label_is_refused_at_the_start(tmp_path):
    with pytest.raises(UserError, match="selector.reward.quality 'correct' needs one label per image"):
        experiment(tmp_path, "--config.selector.reward.quality=correct")
    looks = (LookConfig(begins=1, structures=(1.0,)),)
    config = dataclasses.replace(io.load_config(CONFIG, Config, ()), cascade=CascadeConfig(looks=looks))
    with pytest.raises(UserError, match="a cascade needs one label per image"):
        Experiment(config, Workdir(tmp_path), Progress(quiet=True), source=source())


def test_refused_later(trained):
    with pytest.raises(UserError, match="the command pit needs one label per image"):
        pit_rows(trained[0], 0)
    mixing = source(augment=AugmentConfig(mixup=0.2))
    with pytest.raises(UserError, match="mixup and cutmix need one label per image"):
        mixing.sample(mixing.tables, jax.random.key(0), 4)


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(validation=(np.zeros((2, 10, 10, 1), np.uint8), np.zeros(2, int))), "validation and training"),
        (
            dict(test=(np.zeros((1, 10, 10, 1), np.uint8), np.full((1, 4), 2))),
            "test labels of image 0 are not",
        ),
        (dict(test=(np.zeros((1, 10, 10, 1), np.uint8), np.ones((1, 3), int))), r"shape \(1, 3\)"),
        (dict(balance_exponent=0.5), "balance_exponent needs one label per image"),
    ],
)
def test_wrong_arrays(change, message):
    with pytest.raises(UserError, match=message):
        source(**change)


@pytest.fixture
def folder(tmp_path):
    """The same images as files, with a CSV file for each split."""
    for split, count, seed in (("train", 20, 0), ("test", 6, 1)):
        images, labels = quadrants(count, seed)
        (tmp_path / split / "deep").mkdir(parents=True)
        with open(tmp_path / f"{split}.csv", "w", newline="") as file:
            lines = csv.writer(file)
            lines.writerow(["file", "north west", "ne", "sw", "se"])
            for number, (image, row) in enumerate(zip(images, labels)):
                name = f"deep/{number}.png" if number % 2 else f"{number}.png"
                Image.fromarray(image[..., 0]).save(tmp_path / split / name)
                lines.writerow([name, *row])
    return tmp_path


def files(folder, **change):
    images = ImagesConfig(size=10, crop=1.0, channels=1, mean=(0.0,), std=(1.0,), threads=1, **change)
    return load_folder_source(FolderConfig(str(folder), labels="csv", validation_share=0.25), images)


@pytest.mark.parametrize("in_memory", [True, False])
def test_labels_from_a_csv_file(folder, in_memory):
    data = files(folder, in_memory=in_memory)
    assert data.classes == ("north west", "ne", "sw", "se") and data.multi_label
    images, labels = quadrants(6, 1)
    split = data.split("test")
    np.testing.assert_array_equal(split.labels, labels)
    np.testing.assert_allclose(split.images[:], images / np.float32(255), atol=1e-6)
    assert len(data.split("validation").labels) == 5
    tables = data.tables if in_memory else next(data.batches(15))
    drawn, drawn_labels = data.sample(tables, jax.random.key(0), 15)
    bright = np.stack([np.asarray(drawn)[:, top, left, 0] > 0.5 for top, left in QUADRANTS], axis=1)
    assert drawn_labels.dtype == jnp.int32
    np.testing.assert_array_equal(drawn_labels, bright)


@pytest.mark.parametrize(
    "text, message",
    [
        ("file,a\n0.png,2\n", r"image 1 \(0.png\) needs 0 or 1 for each of 1 classes, not 2"),
        ("file,a,b\n0.png,1\n", "needs 0 or 1 for each of 2 classes"),
        ("file,a,a\n0.png,1,1\n", "needs a header"),
        ("", "cannot be read"),
        (None, "cannot be read"),
    ],
)
def test_wrong_csv_files(folder, text, message):
    (folder / "train.csv").unlink() if text is None else (folder / "train.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        files(folder)


def test_other_classes_in_a_csv_file(folder):
    (folder / "test.csv").write_text("file,ne,sw\n0.png,1,0\n")
    with pytest.raises(UserError, match="has the classes ne, sw; expected those of the training set"):
        files(folder)
    with pytest.raises(UserError, match="labels = 'json' is not known; choose one of 'folders', 'csv'"):
        FolderConfig("x", labels="json")
