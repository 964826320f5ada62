"""A tiny cascade from its config to its table, and served: in Python, explained, sharded and exported."""

import copy
import dataclasses
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prance_jax.cascade.forward import forward_path
from prance_jax.cascade.passes import forward_look
from prance_jax.cascade.table import node_costs
from prance_jax.cli import main
from prance_jax.config import io
from prance_jax.config.experiment import Config
from prance_jax.config.peers import dvt
from prance_jax.core.errors import UserError
from prance_jax.experiments.cascade.peers import PeerStages
from prance_jax.experiments.cascade.rows import cascade_rows, method_entries, peer_rows
from prance_jax.experiments.cascade.stages import CascadeStages
from prance_jax.models.forward import init_params
from prance_jax.models.vit import ViT
from prance_jax.results.evaluate_cascade import evaluate_cascade
from prance_jax.results.rows import load_results
from prance_jax.results.table import save_results
from prance_jax.serving.export import export
from prance_jax.serving.exported import load_exported
from prance_jax.serving.load import load
from prance_jax.training.progress import Progress
from prance_jax.training.workdir import Workdir
from prance_jax.zoo.formats.files import read_tensors, save_weights
from prance_jax.zoo.from_dense import meta_from_dense
from prance_jax.zoo.load import flatten_params

CONFIG = Path(__file__).parents[1] / "tiny_cascade.py"


def open_stages(folder, *overrides):
    config = io.load_config(CONFIG, Config, overrides)
    workdir = Workdir(folder)
    workdir.claim(io.to_dict(config), "test")
    return CascadeStages(config, workdir, Progress(quiet=True))


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    return open_stages(tmp_path_factory.mktemp("cascade"))


@pytest.fixture(scope="module")
def rows(experiment):
    return {row.method: row for row in cascade_rows(experiment, 0)}


@pytest.fixture(scope="module")
def model(experiment, rows):
    return load(experiment.workdir.path)


@pytest.fixture(scope="module")
def images(experiment):
    return jnp.asarray(experiment.source.split("test").images[:6])


def test_rows_of_every_budget(rows):
    assert list(rows) == [
        "best_static_finetuned_50",
        "random_routing_50",
        "confidence_50",
        "prance_cascade_50",
        "oracle_50",
        "cf_vit_50",
    ]


def test_a_peer_is_another_cascade_on_the_same_dense_network(experiment, rows):
    """Its stages stand in a folder of its own, it has no selector, and its second look is the dense network's grid."""
    trained = sorted(path.name for path in (experiment.workdir.checkpoints / "seed0/peers/cf_vit").iterdir())
    assert trained == ["finetune_1", "meta"]
    row = rows["cf_vit_50"]
    assert [step.look for step in row.cascade.steps] == [0, 1] and row.cost_weight is None
    assert row.cascade.spec.dense_macs == experiment.cascade_spec.dense_macs
    assert set(row.params["look_0"]) == {"pos_embed", "norm", "head"}
    # It has no selector, so an image that stops early pays for its look alone.
    first, images = row.cascade.macs[1] / row.cascade.spec.dense_macs, row.routed.node == 1
    assert images.any() and row.routed.cost[images] == pytest.approx(first)


def test_the_teacher_of_stage_one_is_the_last_look_of_the_run(experiment, rows, images):
    """By default stage one teaches: its network is a cascade, the teacher a plain network. Peers have the same one."""
    run = copy.copy(experiment)
    run.config = dataclasses.replace(
        run.config, finetune=dataclasses.replace(run.config.finetune, teacher="meta")
    )
    spec, params = run.cascade_spec, run.meta(0)
    expected = forward_look(spec.unrefined, params, images, 1, spec.dense.largest).answers[-1]
    for stages in (run, PeerStages(run, run.settings.peers[0])):
        logits = ViT(spec.dense).apply({"params": stages._teacher(0)}, images, spec.dense.largest)
        np.testing.assert_allclose(logits, expected, atol=1e-6)


def test_images_of_dvt_pass_its_looks_in_order(experiment):
    """No look is left out, so the tree is a chain; all looks are whole, so nothing is searched or trained for it."""
    peer = PeerStages(experiment, dvt((5, 10)))
    steps = peer.cascade(0).steps
    assert [(step.parent, step.look) for step in steps] == [(0, 0), (1, 1), (2, 2)]
    assert [look.spec.image_size for look in peer.cascade_spec.looks] == [5, 10, 20]
    assert not peer.is_elastic and not (experiment.workdir.checkpoints / "seed0/peers/dvt").exists()


def test_a_peer_has_no_row_at_a_budget_that_no_threshold_meets(experiment, rows):
    run, notes = at_budgets(experiment, 0.1, 0.5)
    assert [row.method for row in peer_rows(run, 0, run.settings.peers[0])] == ["cf_vit_50"]
    missing, *others = notes
    assert "cf_vit has no row at budget 0.1, its nearest threshold spends 0.2" in missing
    assert all("cf_vit spends" in note for note in others)


def test_the_second_look_splits_half_of_its_cells(experiment):
    """Of 4 x 4 patches, in 2 x 2 cells; the dense network has every patch as a token."""
    first, second = (look.spec for look in experiment.cascade(0).spec.looks)
    assert (first.refined_cells, second.refined_cells, second.tokens) == (None, 2, 1 + 2 * 4 + 2)
    assert experiment.cascade_spec.dense == dataclasses.replace(experiment.spec("prune"), exits=(0,))


def test_random_routing_shares_images_out_as_the_selector_does(rows):
    ours, random = rows["prance_cascade_50"].routed, rows["random_routing_50"].routed
    np.testing.assert_array_equal(np.sort(ours.node), np.sort(random.node))
    assert random.cost.mean() == pytest.approx(ours.cost.mean(), rel=1e-6)


def test_the_oracle_is_right_wherever_a_node_within_reach_is(rows):
    table = rows["oracle_50"].table
    assert rows["oracle_50"].routed.correct.mean() <= np.asarray(table.correct)[:, 1:].any(axis=1).mean()
    for method in ("confidence_50", "prance_cascade_50"):
        assert rows["oracle_50"].routed.correct.mean() >= rows[method].routed.correct.mean()


def at_budgets(experiment, *budgets):
    """The same experiment with other budgets; its notes are kept in a list."""
    run, notes = copy.copy(experiment), []
    run.progress = Progress(quiet=True)
    run.progress.note = notes.append
    settings = dataclasses.replace(experiment.settings, budgets=budgets)
    run.config = dataclasses.replace(experiment.config, cascade=settings)
    return run, notes


def test_results_are_stored_with_percentiles_and_exits(experiment, rows, monkeypatch):
    """Two layers are too few for ToMe to save half of the MACs: its row is at 70 %."""
    run, notes = at_budgets(experiment, 0.5, 0.7)
    entries = method_entries(run, 0)
    assert len(notes) == 1 and "tome has no row at budget 0.5, its nearest schedule costs 0.7" in notes[0]
    monkeypatch.setattr("prance_jax.results.evaluate_cascade.method_entries", lambda *_: entries)
    (results,) = evaluate_cascade(experiment, "test", lambda: 1.0)
    save_results(results, experiment.workdir.path)
    assert load_results(experiment.workdir.path) == results
    stored = {row.method: row for row in results.rows}
    assert list(stored)[:2] == ["dense", "dense_tuned"] and stored["dense_tuned"].top1_change == 0
    for method, row in rows.items():
        numbers = stored[method]
        cost = np.sort(row.routed.cost)
        assert numbers.macs_p05 <= numbers.macs_p50 <= numbers.macs_p95
        assert (numbers.macs_p05, numbers.macs_p95) == pytest.approx(
            (np.percentile(cost, 5), np.percentile(cost, 95)), rel=1e-5
        )
        assert sum(item.share for item in numbers.exits) == pytest.approx(1)
        assert sum(item.share * item.top1 for item in numbers.exits) == pytest.approx(numbers.top1)
        assert sum(item.share * item.macs_kept for item in numbers.exits) == pytest.approx(numbers.macs_kept)
    assert 0.665 < stored["tome_tuned_70"].macs_kept < 0.735 and stored["tome_tuned_70"].images_per_s > 0
    assert stored["cf_vit_50"].images_per_s > 0 and stored["cf_vit_50"].gap_won is None
    assert stored["prance_cascade_50"].images_per_s > 0 and stored["oracle_50"].images_per_s is None


def test_stage_one_starts_from_the_dense_network_or_from_a_file(tmp_path):
    """Channels are sorted by importance first, as for a network without looks; a stage once begun needs no file."""
    steps = ("--config.dense.steps=0", "--config.meta.steps=0")
    run = open_stages(tmp_path / "dense", *steps, "--config.meta.init_from=dense")
    spec, images = run.cascade_spec, run.source.split("test").images[:4]
    largest = forward_look(spec.unrefined, run.meta(0), images, 1, spec.last.largest).answers[-1]
    plain = run.spec(run.config.token_modes[0])
    expected = ViT(plain).apply({"params": run.dense(0)}, images)
    np.testing.assert_allclose(largest, expected, atol=1e-5 * np.abs(expected).max(), rtol=0)
    start = meta_from_dense(run.dense(0), plain, run.meta_spec, init_params(ViT(plain), jax.random.key(0)))
    np.testing.assert_array_equal(
        run.meta(0)["look_1"]["block_0"]["fc1"]["kernel"], start["block_0"]["fc1"]["kernel"]
    )
    file = tmp_path / "dense.safetensors"
    save_weights(file, flatten_params(start), {})
    again = open_stages(tmp_path / "file", *steps, f"--config.meta.init_from={file}")
    chex.assert_trees_all_equal(again.meta(0)["look_1"], run.meta(0)["look_1"])
    file.unlink()
    chex.assert_trees_all_equal(
        open_stages(tmp_path / "file", *steps, f"--config.meta.init_from={file}").meta(0), again.meta(0)
    )


def test_a_plain_network_gets_a_look_and_an_exit(tmp_path):
    """One width, no residual maps, one set of weights for both looks: before training the last answer is the network's."""
    plain = (
        "--config.model.space.widths=(8,)",
        "--config.model.space.ratios=(2.0,)",
        "--config.model.residual_maps=False",
        "--config.meta.steps=0",
    )
    run = open_stages(tmp_path / "dense", *plain, "--config.dense.steps=2", "--config.meta.init_from=dense")
    file = tmp_path / "vit.safetensors"
    save_weights(file, flatten_params(run.dense(0)), {})
    config = io.to_dict(io.load_config(CONFIG, Config, (*plain, f"--config.meta.init_from={file}")))
    first, second = config["cascade"]["looks"]
    config["cascade"]["looks"] = [{**first, "shares": "all"}, {**second, "refined": None}]
    workdir = Workdir(tmp_path / "plain")
    workdir.claim(config, "test")
    stages = CascadeStages(io.from_dict(Config, config), workdir, Progress(quiet=True))
    cascade, params, images = stages.cascade(0), stages.meta(0), run.source.split("test").images[:4]
    assert set(params["look_0"]) == {"pos_embed", "norm", "head"}
    expected = ViT(run.spec("prune")).apply({"params": run.dense(0)}, images)
    deepest = max(range(cascade.num_nodes), key=lambda node: len(cascade.path(node)))
    assert [cascade.steps[node - 1].look for node in cascade.path(deepest)] == [0, 1, 1]
    logits = forward_path(cascade, params, images, deepest).logits
    np.testing.assert_allclose(logits, expected, atol=1e-5 * np.abs(expected).max(), rtol=0)


def test_a_second_run_trains_nothing(experiment, rows):
    again = CascadeStages(experiment.config, experiment.workdir, Progress(quiet=True), train=False)
    for left, right in zip(
        jax.tree.leaves(again.cascade_params(0)), jax.tree.leaves(experiment.cascade_params(0))
    ):
        np.testing.assert_array_equal(left, right)
    for row in cascade_rows(again, 0):
        np.testing.assert_array_equal(row.routed.node, rows[row.method].routed.node)


def test_serving_is_the_table(experiment, rows, model):
    """The executor answers as the table of the same images says, at several budgets."""
    table, split = rows["prance_cascade_50"].table, experiment.source.split("test")
    for budget in {model.budget_table.range[0], model.budget_table.range[1]}:
        output = model.serve(jnp.asarray(split.images), budget)
        expected = np.asarray(table.predicted)[np.arange(len(split.labels)), output.node]
        np.testing.assert_array_equal(np.asarray(output.logits).argmax(-1), expected)


def test_without_a_budget_it_is_the_largest_one_of_the_config(model, images):
    low, high = model.budget_table.range
    assert model.default_budget == pytest.approx(min(max(0.5, low), high))
    np.testing.assert_array_equal(model(images), model(images, budget=model.default_budget))


def test_explanations(model, images):
    output, costs = model.serve(images), node_costs(model.cascade, model.decision_cost)
    for index, explanation in enumerate(model.explain(images)):
        node = int(output.node[index])
        assert explanation.node == node and explanation.macs_kept == pytest.approx(costs[node])
        assert len(explanation.answers) == len(model.cascade.path(node))
        assert explanation.answers[-1].predicted == explanation.predicted
        probabilities = jax.nn.softmax(output.logits[index])
        assert explanation.answers[-1].probability == pytest.approx(float(probabilities.max()), abs=1e-5)


def test_an_exported_cascade_is_the_model(model, images, tmp_path):
    card = export(model, tmp_path / "cascade.prance")
    program = load_exported(tmp_path / "cascade.prance")
    assert card["budget_range"] == pytest.approx(list(model.budget_table.range))
    np.testing.assert_allclose(program(images[:1]), model(images[:1]), atol=1e-5)
    budgets = np.linspace(*model.budget_table.range, 5)
    expected = model(images[:5], budget=list(budgets))
    np.testing.assert_allclose(program(images[:5], budget=budgets), expected, atol=1e-5)
    for index in (0, 4):
        alone = model(images[index : index + 1], budget=budgets[index])
        np.testing.assert_allclose(expected[index : index + 1], alone, atol=1e-5)


def test_weights_of_a_cascade_are_no_file(experiment, rows, tmp_path, capsys):
    """Its dense network's are."""
    command = ["export", "--workdir", str(experiment.workdir.path), "--out", str(tmp_path / "x.safetensors")]
    assert main(command) == 2
    assert "give --out NAME.prance, or --weights dense" in capsys.readouterr().err
    assert main([*command, "--weights", "dense"]) == 0
    tensors = read_tensors(tmp_path / "x.safetensors")
    np.testing.assert_array_equal(tensors["head/kernel"], experiment.dense(0)["head"]["kernel"])


def test_compare_points_to_the_table_of_the_cascade(experiment, rows, capsys):
    assert main(["compare", "--workdir", str(experiment.workdir.path)]) == 2
    assert "name the methods in cascade.methods" in capsys.readouterr().err


def test_one_device_of_a_mesh(model, images):
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("data",))
    np.testing.assert_allclose(model.shard(mesh)(images), model(images), atol=1e-5)


def test_nothing_changes_under_jax_enable_x64(experiment, model, images, tmp_path):
    """Stage one and the answers of this cascade, and those of a stored plain run; without the flag they are the same."""
    run, plain = tmp_path / "run", tmp_path / "plain"
    shutil.copytree(experiment.workdir.path, run)
    shutil.rmtree(run / "checkpoints/seed0/cascade/meta")
    with zipfile.ZipFile(CONFIG.parent / "stored/tiny.zip") as archive:
        archive.extractall(plain)
    np.savez(tmp_path / "in.npz", images=images)
    program = Path(__file__).with_name("answers_in_x64.py")
    words = [sys.executable, program, run, plain, tmp_path / "in.npz", tmp_path / "out.npz"]
    environment = {**os.environ, "JAX_ENABLE_X64": "1", "PYTHONPATH": str(CONFIG.parents[1])}
    done = subprocess.run(list(map(str, words)), env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "out.npz") as answers:
        for path, leaf in jax.tree_util.tree_leaves_with_path(experiment.meta(0)):
            wide = answers[jax.tree_util.keystr(path)]
            np.testing.assert_array_equal(wide, leaf, strict=True, err_msg=jax.tree_util.keystr(path))
        for name, expected in (("cascade", model(images)), ("plain", load(plain)(images))):
            assert answers[name].dtype == np.float32
            np.testing.assert_allclose(answers[name], expected, rtol=1e-5, atol=1e-6)


def test_wrong_inputs(model, images):
    with pytest.raises(UserError, match="takes \\[batch, 20, 20, 1\\]"):
        model(images[:, :10])
    with pytest.raises(UserError, match="outside the calibrated range"):
        model(images, budget=7.0)
    with pytest.raises(UserError, match="one for each of the"):
        model(images, budget=[model.default_budget] * (len(images) + 1))
