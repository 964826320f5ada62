"""The convert command: released PRANCE files, readable cards, extracted structures, clear errors."""

import json
import pickle
import struct
import zipfile

import jax
import numpy as np
import pytest
from small import drawn_params

import prance_jax
from prance_jax.cli import main
from prance_jax.config import io
from prance_jax.config.experiment import Config
from prance_jax.data.load import placeholder_source
from prance_jax.spec.architecture import Architecture
from prance_jax.spec.model_spec import ModelSpec
from prance_jax.spec.search_space import SearchSpace
from prance_jax.zoo.formats import released_prance
from prance_jax.zoo.formats.files import read_tensors, save_weights
from prance_jax.zoo.formats.timm import to_timm
from prance_jax.zoo.load import flatten_params, load_weights, read_semantics

GOLDEN = """
def get_config():
    space = {"super_width": 112, "super_ratio": 4.0, "heads": 1, "head_dim": 64, "widths": (64, 80, 88, 96)}
    space |= {"ratios": (2.0, 3.0, 4.0), "layers": (3, 3, 3, 3)}
    noise = {"image_size": 64, "num_classes": 10, "images": 2}
    return {"model": {"space": space, "patch_size": 8}, "data": {"name": "noise", "noise": noise}}
"""
SMALL = ModelSpec(
    SearchSpace("mini", 16, 2.0, 3, (8, 12), (1.0, 2.0), (1, 1), head_dim=4), 8, 4, 5, residual_maps=False
)


@pytest.fixture(scope="module", autouse=True)
def registered():
    if not prance_jax.list_models("mini_elastic"):
        prance_jax.register_model("mini_elastic", lambda: SMALL)


@pytest.fixture
def weights(tmp_path):
    """A file of a random network, and its parameters."""
    params = drawn_params(SMALL)
    save_weights(
        tmp_path / "w.safetensors", flatten_params(params), {"licence": "mit", "names": "x", "measured": 1}
    )
    return str(tmp_path / "w.safetensors"), params


def card(path):
    """The card, read without any package: eight bytes of length, then JSON."""
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        return json.loads(json.loads(file.read(length))["__metadata__"]["card"])


def refused(capsys, *words):
    assert main(["convert", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize("mode", ["prune", "merge"])
def test_released_files_convert_with_nothing_left_over(mode, golden, tmp_path):
    """The released names of both golden networks, actors and critics; every tensor is used once."""
    (tmp_path / "golden.py").write_text(GOLDEN)
    config = io.load_config(tmp_path / "golden.py", Config)
    spec = config.spec(placeholder_source(config.data), mode).official()
    for part in ("model", "actor", "critic"):
        arrays = {
            name.removeprefix(f"{part}/"): value
            for name, value in golden(mode).items()
            if name.startswith(f"{part}/")
        }
        source, target = tmp_path / f"{part}.npz", tmp_path / f"{part}.safetensors"
        np.savez(source, **arrays)
        words = ["--config", str(tmp_path / "golden.py"), "--token-mode", mode]
        assert main(["convert", str(source), str(target), *words]) == 0
        tensors = read_tensors(target)
        if part == "model":
            assert read_semantics(target) == {
                **read_semantics(source),
                "distilled": False,
                "residual_maps": True,
                "pixels": False,
                "multi_label": False,
                "architecture": Architecture(),
            }
            direct = flatten_params(released_prance.meta_network(arrays, spec, load_weights(target, spec)))
        else:
            transposed = {name: value.T.astype("f4") for name, value in arrays.items()}
            kinds = {"weight": "kernel", "bias": "bias"}
            direct = {
                f"{part}/{name.split('.')[0]}/{kinds[name.split('.')[1]]}": value
                for name, value in transposed.items()
            }
        assert tensors.keys() == direct.keys() and len(tensors) == len(arrays)
        for name, value in direct.items():
            np.testing.assert_array_equal(tensors[name], value)


def test_the_card_is_readable_without_this_package(weights, tmp_path):
    facts = {"labels": ["a", "b", "c", "d", "e"], "preprocessing": {"mean": [0.5] * 3, "std": [0.25] * 3}}
    (tmp_path / "facts.json").write_text(json.dumps(facts))
    target = str(tmp_path / "out.safetensors")
    words = ["--model", "mini_elastic", "--card", str(tmp_path / "facts.json")]
    assert main(["convert", weights[0], target, *words]) == 0
    facts_read = card(target)
    assert facts_read["labels"] == facts["labels"] and facts_read["licence"] == "mit"
    assert facts_read["preprocessing"] == {**facts["preprocessing"], "size": [8, 8]}
    assert facts_read["search_space"]["widths"] == [8, 12] and facts_read["search_space"]["super_width"] == 16
    assert (facts_read["names"], facts_read["network"]["norm_epsilon"]) == ("prance_jax", 1e-6)
    again = load_weights(target, SMALL)
    jax.tree.map(np.testing.assert_array_equal, again, weights[1])


def test_a_structure_is_extracted_under_timms_names(weights, tmp_path):
    target = str(tmp_path / "out.safetensors")
    words = ["--model", "mini_elastic", "--structure", "8x2", "--names", "timm"]
    assert main(["convert", weights[0], target, *words]) == 0
    facts_read, tensors = card(target), read_tensors(target)
    assert facts_read["measured"] is None and facts_read["search_space"]["widths"] == [8]
    timm = facts_read["timm"]
    assert (timm["embed_dim"], timm["depth"], timm["num_heads"], timm["attn_head_dim"]) == (8, 2, 3, 4)
    assert tensors["blocks.1.mlp.fc1.weight"].shape == (int(8 * timm["mlp_ratio"]), 8) == (16, 8)
    assert tensors["blocks.0.attn.qkv.weight"].shape == (36, 8)
    np.testing.assert_array_equal(tensors["norm.weight"], weights[1]["norm"]["scale"][:8])


def test_what_cannot_be_converted_is_one_clear_line(weights, tmp_path, capsys):
    target = str(tmp_path / "out.safetensors")
    error = lambda source, *words: refused(capsys, str(source), target, "--model", "mini_elastic", *words)
    assert "has no tensor head_dist.*, x?" in error(weights[0], "--ignore", "head_dist.*", "--ignore", "x?")
    assert "'9x9' is not in the search space" in error(weights[0], "--structure", "9x9")
    save_weights(tmp_path / "resnet.safetensors", {"conv1.weight": np.ones(2), "fc.bias": np.ones(2)}, {})
    assert "holds no ViT that is known (2 tensors: conv1.weight, fc.bias" in error(
        tmp_path / "resnet.safetensors"
    )
    with zipfile.ZipFile(tmp_path / "evil.pth", "w") as archive:
        archive.writestr("run/data.pkl", pickle.dumps({"model": print}))
    assert "evil.pth cannot be read: the pickle holds builtins.print" in error(tmp_path / "evil.pth")
    wide = ModelSpec(SearchSpace("wide", 20, 2.0, 5, (20,), (2.0,), (3,), head_dim=4), 8, 4, 7)
    save_weights(tmp_path / "wide.safetensors", to_timm(drawn_params(wide), wide), {})
    message = error(tmp_path / "wide.safetensors")
    for words in (
        "cls_token: wanted (16,), found (20,)",
        "block_{0,1}/fc1/kernel: wanted (16, 32), found (20, 40)",
        "not used: block_2/fc1/kernel (20, 40)",
        "it has 7 classes, the model 5: num_classes=7",
    ):
        assert words in message
    assert not (tmp_path / "out.safetensors").exists()


def test_tensors_can_be_named_as_ignored(tmp_path):
    params = drawn_params(SMALL)
    save_weights(
        tmp_path / "w.safetensors", {**flatten_params(params), "ema/decay": np.ones(1, np.float32)}, {}
    )
    again = load_weights(tmp_path / "w.safetensors", SMALL, ["ema/*"])
    jax.tree.map(np.testing.assert_array_equal, again, params)
