"""A meta-network that starts from a dense network computes what the dense network computes."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from small import PAIR, drawn_params, logits, make_spec

import prance_jax
from prance_jax.core.errors import UserError
from prance_jax.spec.architecture import Architecture
from prance_jax.spec.search_space import SearchSpace
from prance_jax.zoo.channel_order import channel_order, hidden_order
from prance_jax.zoo.formats.files import save_weights
from prance_jax.zoo.formats.timm import to_timm
from prance_jax.zoo.from_dense import (
    load_dense,
    load_initial_params,
    matching_structure,
    meta_from_dense,
)
from prance_jax.zoo.load import make_card


def dense_spec(width=24, mlp_dims=60, heads=2, **changes):
    """A plain ViT; the defaults 24 and 60 are below the space's 28 and 84."""
    ratio = SearchSpace.ratio(width, mlp_dims)
    space = SearchSpace("plain", width, ratio, heads, (width,), (ratio,), (2,), head_dim=8)
    return make_spec(**{"space": space, **changes})


def meta_spec(**changes):
    return make_spec(space=PAIR, **changes)


@pytest.mark.parametrize(
    "source, distilled",
    [
        (meta_spec(), False),  # the run's own dense network, its residual maps trained
        (dense_spec(24, 60, heads=1), True),  # fewer heads, hidden units and channels than in the space
    ],
)
def test_the_structure_of_its_width_is_the_dense_network(source, distilled, images):
    source = dataclasses.replace(source, distilled=distilled)
    spec = meta_spec(distilled=distilled)
    dense = drawn_params(source)
    params = meta_from_dense(dense, source, spec, drawn_params(spec, 5))
    structure = matching_structure(source, spec)
    assert structure.widths == (source.space.max_width,) * 2
    expected = logits(source, dense, images)
    actual = logits(spec, params, images, structure)
    np.testing.assert_allclose(actual, expected, atol=1e-5 * np.abs(expected).max(), rtol=0)


@pytest.mark.parametrize("size, width", [("tiny", 192), ("small", 384), ("base", 768)])
def test_every_deit_fits_into_the_papers_space(size, width):
    source, spec = (prance_jax.create_model(f"{name}_{size}_patch16_224").spec for name in ("deit", "prance"))
    assert set(matching_structure(source, spec).widths) == {width}


def test_important_channels_and_units_come_first():
    """For a network with shuffled channels and units, the order undoes the shuffle."""
    source = dense_spec()
    dense = jax.tree.map(np.array, drawn_params(source))
    rng = np.random.default_rng(0)
    channels, units = rng.permutation(24), rng.permutation(60)
    for layer in range(2):
        block = dense[f"block_{layer}"]
        block["fc2"]["kernel"][units] *= np.linspace(9, 1, 60)[:, None]
        block["fc2"]["kernel"][:, channels] *= np.linspace(9, 1, 24)
    order = hidden_order(dense, source, 1)
    assert np.corrcoef(np.argsort(order), np.argsort(units))[0, 1] > 0.8
    assert np.corrcoef(np.argsort(channel_order(dense, source)), np.argsort(channels))[0, 1] > 0.9


def test_all_obstacles_are_listed():
    source = dense_spec(20, 100, heads=3, norm_epsilon=1e-5)
    with pytest.raises(UserError) as caught:
        matching_structure(source, meta_spec())
    for words in (
        "norm_epsilon 1e-05, wanted 1e-06",
        "3 heads, at most 2",
        "width 20, wanted one of (16, 24",
    ):
        assert words in str(caught.value)
    with pytest.raises(UserError, match="100 hidden units, at most 72 at width 24"):
        matching_structure(dense_spec(24, 100), meta_spec())
    with pytest.raises(UserError, match="residual maps where this network has none"):
        matching_structure(meta_spec(), meta_spec(residual_maps=False))


def test_a_file_of_a_dense_network_is_loaded(tmp_path):
    """Sizes come from the file; with other classes only the classifier keeps its random values."""
    spec, source = meta_spec(), dense_spec(28, 84, num_classes=7)
    dense = drawn_params(source)
    save_weights(tmp_path / "dense.safetensors", to_timm(dense, source), make_card(source, "timm"))
    fresh = drawn_params(spec, 5)
    params = load_initial_params(tmp_path / "dense.safetensors", spec, fresh)
    np.testing.assert_array_equal(params["head"]["kernel"], fresh["head"]["kernel"])
    direct = meta_from_dense(dense, source, spec, fresh)
    jax.tree.map(np.testing.assert_array_equal, params, direct)


def test_heads_come_from_the_card_or_config_json_and_are_not_guessed(tmp_path):
    """Two heads of 12 or three of 8: the tensors are the same."""
    source = dense_spec(24, 60, heads=3, num_classes=7)
    tensors = to_timm(drawn_params(source), source)
    save_weights(tmp_path / "dense.safetensors", tensors, {})
    with pytest.raises(
        UserError, match="does not tell its number of heads, and no public network has width 24"
    ):
        load_dense(tmp_path / "dense.safetensors", meta_spec())
    arguments = {"embed_dim": 24, "depth": 2, "num_heads": 2, "mlp_ratio": 2.5, "patch_size": 4}
    config = {"architecture": "vit_tiny_patch16_224", "model_args": arguments}
    (tmp_path / "config.json").write_text(json.dumps(config))
    _, read = load_dense(tmp_path / "dense.safetensors", meta_spec())
    assert (read.space.heads, read.space.head_dim) == (2, 12)
    with pytest.raises(UserError, match="head_dim 12, wanted 8"):
        matching_structure(read, meta_spec())


def test_a_dense_network_without_a_classifier_is_a_start(tmp_path):
    spec, source = meta_spec(), dense_spec(28, 84)
    tensors = {
        name: value for name, value in to_timm(drawn_params(source), source).items() if "head" not in name
    }
    save_weights(tmp_path / "dense.safetensors", tensors, make_card(source, "timm"))
    with pytest.warns(UserWarning, match="has no classifier: head is a random one for 5 outputs"):
        params = load_initial_params(tmp_path / "dense.safetensors", spec, drawn_params(spec, 5))
    mean = lambda tree: float(np.mean(tree["block_1"]["fc2"]["bias"]))
    expected = tensors["blocks.1.mlp.fc2.bias"].sum() / params["block_1"]["fc2"]["bias"].size
    np.testing.assert_allclose(mean(params), expected, rtol=1e-5)


def test_every_part_of_an_architecture_is_carried_over():
    """Registers, a norm after the embedding and a gated MLP; the network has no CLS and no classifier."""
    parts = Architecture(
        class_token=False, reg_tokens=2, no_embed_class=True, pre_norm=True, gated_mlp=True, global_pool="avg"
    )
    source, spec = (
        dataclasses.replace(plain, architecture=parts, num_classes=0) for plain in (dense_spec(), meta_spec())
    )
    dense = drawn_params(source)
    params = meta_from_dense(dense, source, spec, drawn_params(spec, 5))
    images = np.random.default_rng(0).standard_normal((2, *spec.image_shape)).astype(np.float32)
    expected = logits(source, dense, images)
    actual = logits(spec, params, images, matching_structure(source, spec))
    # Features have the order of the meta-network's channels.
    expected = expected[:, channel_order(dense, source)]
    np.testing.assert_allclose(actual, expected, atol=1e-5 * np.abs(expected).max(), rtol=0)
    with pytest.raises(UserError, match="architecture Architecture.class_token=False"):
        matching_structure(source, dataclasses.replace(spec, architecture=Architecture()))
