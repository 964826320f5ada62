"""Models by name, and weights under each library's names."""

import json

import jax
import numpy as np
import optax
import pytest
from safetensors import safe_open

import prance_jax
from prance_jax.cli import main
from prance_jax.core.errors import UserError
from prance_jax.spec.model_spec import ModelSpec
from prance_jax.spec.search_space import SearchSpace
from prance_jax.zoo.formats import positions, timm
from prance_jax.zoo.formats.files import read_tensors, save_weights
from prance_jax.zoo.load import flatten_params, load_weights

SMALL = ModelSpec(SearchSpace("mini", 12, 2.0, 3, (12,), (2.0,), (2,), head_dim=4), 8, 4, 5)


@pytest.fixture(scope="module", autouse=True)
def registered():
    if not prance_jax.list_models("mini_patch4_8"):
        prance_jax.register_model("mini_patch4_8", lambda: SMALL)


def fresh(model, seed=0):
    images = jax.random.normal(jax.random.key(9), (2, model.spec.image_size, model.spec.image_size, 3))
    params = jax.jit(model.init)(jax.random.key(seed), images)["params"]
    noisy = lambda leaf: leaf + 0.1 * jax.random.normal(jax.random.key(leaf.size), leaf.shape)
    return images, jax.tree.map(noisy, params)


def test_names():
    assert prance_jax.list_models("prance*") == [
        f"prance_{size}_patch16_224" for size in ("base", "small", "tiny")
    ]
    assert "deit_tiny_patch16_224" in prance_jax.list_models()
    with pytest.raises(UserError, match="nearest: .*prance_small_patch16_224"):
        prance_jax.create_model("prance_smal_patch16")
    with pytest.raises(UserError, match="no option 'num_clases'; nearest: num_classes"):
        prance_jax.create_model("deit_tiny_patch16_224", num_clases=3)
    with pytest.raises(UserError, match="registered already"):
        prance_jax.register_model("mini_patch4_8", lambda: SMALL)


@pytest.mark.parametrize("size, millions", [("tiny", 5.717416), ("small", 22.050664), ("base", 86.567656)])
def test_plain_networks_have_the_parameters_of_timm(size, millions):
    model = prance_jax.create_model(f"deit_{size}_patch16_224")
    shapes = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 224, 224, 3), "float32"))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == round(1e6 * millions)


def test_a_model_trains_in_a_users_loop():
    model = prance_jax.create_model("mini_patch4_8", num_classes=3)
    images, params = fresh(model)
    labels, optimizer = jax.numpy.array([0, 2]), optax.adam(1e-2)

    @jax.jit
    def step(params, state):
        def loss(params):
            logits = jax.vmap(lambda image: model.apply({"params": params}, image[None])[0])(images)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        value, gradient = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(params, updates), state, value

    state, losses = optimizer.init(params), []
    for _ in range(20):
        params, state, value = step(params, state)
        losses.append(float(value))
    assert losses[-1] < 0.3 * losses[0]


def test_written_and_read_weights_are_bit_identical(tmp_path):
    model = prance_jax.create_model("mini_patch4_8")
    _, params = fresh(model)
    for number, tensors in enumerate((timm.to_timm(params, SMALL), flatten_params(params))):
        save_weights(tmp_path / f"{number}.safetensors", tensors, {})
        _, again = prance_jax.create_model("mini_patch4_8", weights=tmp_path / f"{number}.safetensors")
        assert jax.tree.structure(again) == jax.tree.structure(params)
        jax.tree.map(np.testing.assert_array_equal, again, params)


def test_the_convert_command(tmp_path, capsys):
    _, params = fresh(prance_jax.create_model("mini_patch4_8"))
    source, target, back = (str(tmp_path / f"{name}.safetensors") for name in ("timm", "ours", "back"))
    save_weights(source, timm.to_timm(params, SMALL), {})
    options = ["--model", "mini_patch4_8", "--num-classes", "5", "--image-size", "8"]
    assert main(["convert", source, target, *options]) == 0
    assert "names of prance_jax" in capsys.readouterr().out
    assert main(["convert", target, back, *options, "--names", "timm"]) == 0
    before, after = read_tensors(source), read_tensors(back)
    assert before.keys() == after.keys()
    for name in before:
        np.testing.assert_array_equal(before[name], after[name])
    with safe_open(target, "np") as file:
        assert json.loads(file.metadata()["card"])["model"] == "mini_patch4_8"


def broken(change):
    _, params = fresh(prance_jax.create_model("mini_patch4_8"))
    tensors = timm.to_timm(params, SMALL)
    change(tensors)
    return tensors


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda tensors: tensors.pop("blocks.1.mlp.fc1.bias"), "missing block_1/fc1/bias"),
        (lambda tensors: tensors.update({"blocks.0.ls1.gamma": np.ones(3)}), "not used: blocks.0.ls1.gamma"),
        (
            lambda tensors: tensors.update({"norm.weight": np.ones(7)}),
            r"norm/scale: wanted \(12,\), found \(7,\)",
        ),
        (
            lambda tensors: tensors.update({"head.bias": np.ones(9)}),
            "has 9 classes, the model 5: num_classes=9",
        ),
        (
            lambda tensors: tensors.update(
                {"dist_token": np.ones(9), **{f"head_dist.{leaf}": np.ones(5) for leaf in ("weight", "bias")}}
            ),
            "it has two class tokens: distilled=True",
        ),
    ],
)
def test_weights_of_another_model_are_refused_with_all_mismatches(tmp_path, change, words):
    save_weights(tmp_path / "w.safetensors", broken(change), {})
    with pytest.raises(UserError, match=words):
        load_weights(tmp_path / "w.safetensors", SMALL)


def test_files_that_cannot_be_read_are_refused(tmp_path):
    file = tmp_path / "w.safetensors"
    save_weights(file, broken(lambda tensors: None), {})
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match="w.safetensors cannot be read"):
        read_tensors(file)
    with pytest.raises(UserError, match="is not a weight file"):
        read_tensors(tmp_path / "w.onnx")
    with pytest.raises(UserError, match="does not exist"):
        read_tensors(tmp_path / "none.npz")
    np.savez(tmp_path / "p.npz", a=np.array([{"not": "a tensor"}], dtype=object))
    with pytest.raises(UserError, match="p.npz cannot be read"):
        read_tensors(tmp_path / "p.npz")


@pytest.mark.parametrize(
    "name", ["none.safetensors", "empty.safetensors", "cut.safetensors", "cut.npz", "text.pth"]
)
def test_create_model_refuses_a_file_as_convert_does(tmp_path, capsys, name):
    path = tmp_path / name
    if name == "cut.npz":
        np.savez(path, kernel=np.zeros(1000))
        path.write_bytes(path.read_bytes()[:500])
    elif name == "cut.safetensors":
        save_weights(path, {"kernel": np.zeros(1000, np.float32)}, {})
        path.write_bytes(path.read_bytes()[:500])
    elif name != "none.safetensors":
        path.write_text("no weights" * (name == "text.pth"))
    with pytest.raises(UserError) as refused:
        prance_jax.create_model("mini_patch4_8", weights=path)
    assert main(["convert", str(path), str(tmp_path / "out.safetensors"), "--model", "mini_patch4_8"]) == 2
    line = capsys.readouterr().err.strip()
    assert line.endswith(str(refused.value)) and line.count("\n") == 0 and str(path) in line


def test_resized_positions_of_a_ramp_stay_a_ramp():
    """A linear ramp over the grid stays linear, except at the border and up to antialiasing."""
    ramp = np.zeros((1 + 16, 2), np.float32)
    ramp[0], ramp[1:, 0] = 7, np.repeat(np.arange(4), 4)
    resized = positions.resize_positions(ramp, 1 + 64)
    np.testing.assert_array_equal(resized[0], [7, 7])
    rows = resized[1:, 0].reshape(8, 8)
    np.testing.assert_allclose(np.diff(rows[2:6], axis=0), 0.5, atol=0.06)
    assert np.abs(np.diff(rows, axis=1)).max() < 1e-5 and np.abs(resized[1:, 1]).max() == 0


@pytest.mark.parametrize(
    "name, size",
    [(f"deit_{variant}_patch16_224", 224) for variant in ("tiny", "small", "base")]
    + [("deit_tiny_patch16_224", 160), ("deit_tiny_distilled_patch16_224", 160)],
)
def test_timm_agrees(tmp_path, name, size):
    """Logits agree with timm's within 1e-4 for random weights; both resize positions."""
    library, torch = pytest.importorskip("timm"), pytest.importorskip("torch")
    torch.manual_seed(0)
    timm_model = library.create_model(name, img_size=224).eval()
    with torch.no_grad():
        for weight in timm_model.parameters():
            weight.add_(0.02 * torch.randn_like(weight))
    tensors = {key: value.numpy() for key, value in timm_model.state_dict().items()}
    save_weights(tmp_path / "w.safetensors", tensors, {})
    resized = library.create_model(name, img_size=size).eval()
    state, side = timm_model.state_dict(), size // 16
    state["pos_embed"] = library.layers.resample_abs_pos_embed(
        state["pos_embed"], [side, side], num_prefix_tokens=timm_model.num_prefix_tokens
    )
    resized.load_state_dict(state)
    model, params = prance_jax.create_model(name, weights=tmp_path / "w.safetensors", image_size=size)
    images = np.random.default_rng(0).normal(size=(2, size, size, 3)).astype(np.float32)
    with torch.inference_mode():
        expected = resized(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()
    actual = np.asarray(jax.jit(lambda p, x: model.apply({"params": p}, x))(params, images))
    np.testing.assert_allclose(actual, expected, atol=1e-4 * np.abs(expected).max())
