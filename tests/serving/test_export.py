"""An exported file gives what the model gives, for any batch, without the package's model code."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from serving.test_model import IMAGES, make

import prance_jax
from prance_jax.core.errors import UserError
from prance_jax.serving.export import export
from prance_jax.serving.exported import CARD, PROGRAM, ExportedModel


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    model = make(cost_weights=(0.01, 0.5))
    path = tmp_path_factory.mktemp("export") / "model.prance"
    card = export(model, path, {"labels": list("abcde")})
    return model, path, card


def test_results_are_the_same_for_any_batch_and_budget(exported):
    model, path, card = exported
    loaded = prance_jax.load_exported(path)
    assert loaded.card == json.loads(json.dumps(card)) and loaded.card["labels"] == list("abcde")
    for batch, budget in ((1, 0.3), (1, None), (5, [0.35, 0.85, 0.55, 0.3, 0.6])):
        expected = model(IMAGES[:batch], budget=budget)
        logits = loaded(IMAGES[:batch], budget=budget)
        np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5 * float(np.abs(expected).max()))


def test_the_models_code_is_not_needed(exported, tmp_path):
    images = tmp_path / "images.npy"
    np.save(images, np.asarray(IMAGES[:2]))
    script = (
        "import sys, numpy, prance_jax\n"
        "model = prance_jax.load_exported(sys.argv[1])\n"
        "print(model(numpy.load(sys.argv[2])).shape)\n"
        "print(sorted(name for name in sys.modules if name.startswith(('prance_jax.', 'flax'))))\n"
    )
    words = [sys.executable, "-c", script, str(exported[1]), str(images)]
    completed = subprocess.run(words, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    shape, modules = completed.stdout.splitlines()
    used = {"core", "core.checks", "core.errors", "core.old_names", "serving", "serving.exported"}
    assert shape == "(2, 5)" and modules == str(sorted(f"prance_jax.{name}" for name in used))


def test_what_the_card_does_not_admit_is_refused(exported):
    loaded = prance_jax.load_exported(exported[1])
    for images, words in (
        (np.zeros((2, 8, 8, 3), np.float32), r"takes \[batch, 16, 16, 3\]"),
        (np.zeros((2, 16, 16, 3), np.int32), "images are int32"),
        (np.full((2, 16, 16, 3), np.inf, np.float32), "image 0 .* not finite"),
    ):
        with pytest.raises(UserError, match=words):
            loaded(images)
    with pytest.raises(UserError, match="budget 0.95 is outside"):
        loaded(IMAGES, budget=0.95)


def tiny(version):
    """A program in the place of a network: the mean of each image times its budget."""
    (batch,) = jax.export.symbolic_shape("batch")
    budgets = jax.ShapeDtypeStruct((batch,) if version > 1 else (), "float32")
    run = jax.jit(lambda weights, images, budget: (images.mean((1, 2, 3)) * budget)[:, None] * weights[0])
    weights = (jnp.ones(2, "float32"),)
    program = jax.export.export(run)(weights, jax.ShapeDtypeStruct((batch, 4, 4, 1), "float32"), budgets)
    card = {"version": version, "input": {"shape": ["batch", 4, 4, 1]}, "budget_range": [0.1, 1.0]}
    return ExportedModel(card, weights, program)


def test_vmap_runs_all_images_as_one_batch():
    model, rng = tiny(2), np.random.default_rng(0)
    images, budgets = rng.random((3, 2, 4, 4, 1), np.float32), np.array([0.2, 0.6, 0.9], np.float32)
    expected = np.repeat((images.mean((2, 3, 4)) * budgets[:, None])[..., None], 2, axis=-1)
    per_budget = jax.vmap(lambda images, budget: model(images, budget))
    np.testing.assert_allclose(jax.jit(per_budget)(images, budgets), expected, rtol=1e-6)
    one_by_one = jax.vmap(lambda image: model(image[None], 0.6)[0])(images[1])
    np.testing.assert_allclose(one_by_one, expected[1], rtol=1e-6)


def test_a_gradient_is_refused():
    model, images = tiny(2), np.ones((2, 4, 4, 1), np.float32)
    for batched in (model, jax.vmap(lambda image: model(image[None])[0])):
        with pytest.raises(UserError, match="has no gradient"):
            jax.grad(lambda images: batched(images).sum())(images)


def test_files_of_version_1_take_one_budget_for_all_images():
    model, images = tiny(1), np.ones((2, 4, 4, 1), np.float32)
    np.testing.assert_allclose(model(images, 0.4), 0.4, rtol=1e-6)
    with pytest.raises(UserError, match="one budget for all images"):
        model(images, [0.4, 0.5])
    with pytest.raises(UserError, match="no vmap"):
        jax.vmap(lambda images: model(images, 0.4))(images[None])


def test_broken_files_are_named(exported, tmp_path):
    _, path, card = exported
    with pytest.raises(UserError, match="does not exist"):
        prance_jax.load_exported(tmp_path / "none.prance")
    cut = tmp_path / "cut.prance"
    cut.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(UserError, match="cut.prance is not an exported model"):
        prance_jax.load_exported(cut)
    old = tmp_path / "old.prance"
    with zipfile.ZipFile(old, "w") as file:
        file.writestr(CARD, json.dumps({**card, "version": 0}))
        file.writestr(PROGRAM, b"")
    with pytest.raises(UserError, match="version 0, this program reads .* version 2"):
        prance_jax.load_exported(old)
