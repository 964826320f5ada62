"""The released layout, without the released files: written by hand from its description, then read back."""

import jax
import numpy as np
import pytest
from small import SPACE, make_spec

from prance_jax.core.errors import UserError
from prance_jax.models.vit import ViT
from prance_jax.zoo.formats import released_prance

INNER = SPACE.attention_width
NAMES = {"norm1": "attn_layer_norm", "norm2": "ffn_layer_norm", "proj": "attn.proj", "residual_map": "lln"}


def as_released(params, spec, seed=0):
    """Released tensors of our parameters: PyTorch [out, in], q, k and v interleaved, with the super width."""
    rng = np.random.default_rng(seed)
    unused = lambda *shape: rng.normal(size=shape).astype(np.float32)
    params = jax.tree.map(np.asarray, params)
    tensors = {"cls_token": params["cls_token"][None, None], "pos_embed": params["pos_embed"][None]}
    size, width = spec.patch_size, SPACE.super_width
    patches = np.zeros((width, spec.channels, size, size), np.float32)
    for row in range(size):
        for column in range(size):
            for channel in range(spec.channels):
                index = (row * size + column) * spec.channels + channel
                patches[:, channel, row, column] = params["patch_embed"]["kernel"][index]
    tensors["patch_embed_super.proj.weight"] = patches
    tensors["patch_embed_super.proj.bias"] = params["patch_embed"]["bias"]
    tensors["norm.weight"], tensors["norm.bias"] = params["norm"]["scale"], params["norm"]["bias"]
    tensors["head.weight"], tensors["head.bias"] = params["head"]["kernel"].T, params["head"]["bias"]
    for layer in range(SPACE.depth):
        for ours, leaves in params[f"block_{layer}"].items():
            name = f"blocks.{layer}.{NAMES.get(ours, ours)}"
            weight = leaves["scale"] if "scale" in leaves else leaves["kernel"].T
            bias = leaves["bias"]
            if ours == "proj":
                weight = np.concatenate([weight, unused(width, width - INNER)], axis=1)
            if ours == "qkv":
                name = f"blocks.{layer}.attn.qkv"
                rows = unused(3 * width, width)
                for part in range(3):
                    for unit in range(INNER):
                        rows[3 * unit + part] = weight[part * INNER + unit]
                weight, bias = rows, np.concatenate([bias, unused(3 * width - 3 * INNER)])
            tensors[f"{name}.weight"], tensors[f"{name}.bias"] = weight, bias
    return tensors


def test_the_released_layout_is_read_back(params):
    spec = make_spec("prune", official=True)
    converted = released_prance.meta_network(as_released(params, spec), spec, params)
    jax.tree.map(np.testing.assert_array_equal, converted, params)


def test_patches_are_what_a_strided_convolution_sees(params, images):
    spec = make_spec("prune", official=True)
    kernel, size = as_released(params, spec)["patch_embed_super.proj.weight"], spec.patch_size
    embedded = ViT(spec).apply({"params": params}, images[:1], SPACE.max_width, method="initial_tokens")
    row, column = 2, 1
    window = np.asarray(images)[0, row * size : (row + 1) * size, column * size : (column + 1) * size]
    expected = np.einsum("ocij,ijc->o", kernel, window) + params["patch_embed"]["bias"]
    token = 1 + row * (spec.image_size // size) + column
    expected = (expected + params["pos_embed"][token])[: SPACE.max_width]
    np.testing.assert_allclose(embedded.features[0, token], expected, rtol=1e-4, atol=1e-5)


def test_files_in_half_precision_become_float32(params):
    spec = make_spec("prune", official=True)
    half = {name: value.astype(np.float16) for name, value in as_released(params, spec).items()}
    converted = released_prance.meta_network(half, spec, params)
    assert {leaf.dtype for leaf in jax.tree.leaves(converted)} == {np.dtype(np.float32)}


@pytest.mark.parametrize(
    "change, words",
    [
        (dict(drop="blocks.2.lln.bias"), r"missing block_2/residual_map/bias \(32,\)"),
        (dict(add="blocks.1.lln.weight"), r"not used: block_1/residual_map/kernel \(32, 32\)"),
        (dict(add="teacher.weight"), r"not used: teacher.weight \(32, 32\)"),
        (dict(replace="blocks.0.fc1.weight"), r"block_0/fc1/kernel: wanted \(32, 96\), found \(32, 32\)"),
    ],
)
def test_mismatches_are_named(change, words, params):
    spec = make_spec("prune", official=True)
    tensors = as_released(params, spec)
    for kind, name in change.items():
        if kind == "drop":
            del tensors[name]
        else:
            tensors[name] = np.zeros((32, 32), np.float32)
    with pytest.raises(UserError, match=words):
        released_prance.meta_network(tensors, spec, params)
