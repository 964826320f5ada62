"""Flax checkpoints: a reference network of Flax modules with big_vision's names and shapes."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
from small import logits, make_spec, quick_jit

from prance_jax.core.errors import UserError
from prance_jax.spec.search_space import SearchSpace
from prance_jax.zoo.formats import positions
from prance_jax.zoo.load import load_weights

WIDTH, HEADS, DEPTH = 12, 3, 2
SPEC = make_spec(space=SearchSpace("flax", WIDTH, 2, HEADS, (WIDTH,), (2,), (DEPTH,), head_dim=4))


class Mlp(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.gelu(nn.Dense(2 * WIDTH)(x), approximate=False)
        return nn.Dense(WIDTH)(x)


class Layer(nn.Module):
    """Modules are numbered by kind; `old`: over all kinds together, as in vision_transformer."""

    old: bool

    @nn.compact
    def __call__(self, x):
        names = ("MultiHeadDotProductAttention_1", "LayerNorm_2", "MlpBlock_3")
        new = ("MultiHeadDotProductAttention_0", "LayerNorm_1", "MlpBlock_0")
        attention, norm, mlp = names if self.old else new
        y = nn.LayerNorm(name="LayerNorm_0")(x)
        x = x + nn.MultiHeadDotProductAttention(num_heads=HEADS, name=attention)(y, y)
        return x + Mlp(name=mlp)(nn.LayerNorm(name=norm)(x))


class Encoder(nn.Module):
    old: bool

    @nn.compact
    def __call__(self, x):
        for layer in range(DEPTH):
            x = Layer(self.old, name=f"encoderblock_{layer}")(x)
        return nn.LayerNorm(name="encoder_norm")(x)


class Reference(nn.Module):
    """Positions include the class token in vision_transformer (`old`), not in big_vision."""

    old: bool

    @nn.compact
    def __call__(self, images):
        x = nn.Conv(WIDTH, (4, 4), strides=(4, 4), padding="VALID", name="embedding")(images)
        x = x.reshape(len(x), -1, WIDTH)
        token = self.param("cls", nn.initializers.normal(1), (1, 1, WIDTH))
        token = jnp.tile(token, (len(x), 1, 1))
        positions = lambda count: self.param("pos_embedding", nn.initializers.normal(1), (1, count, WIDTH))
        if self.old:
            x = jnp.concatenate([token, x], axis=1)
            x = x + positions(x.shape[1])
        else:
            x = jnp.concatenate([token, x + positions(x.shape[1])], axis=1)
        x = Encoder(self.old, name="Transformer")(x)
        return nn.Dense(5, name="head")(x[:, 0])


def reference(old, images):
    """Returns tensors by name, and logits."""
    model = Reference(old)
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)["params"]
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: 0.5 * rng.standard_normal(leaf.shape).astype("f4"), shapes)
    flat = {"/".join(path): np.asarray(leaf) for path, leaf in _leaves(params)}
    if old:
        flat["Transformer/posembed_input/pos_embedding"] = flat.pop("pos_embedding")
    return flat, np.asarray(quick_jit(model.apply)({"params": params}, images))


def _leaves(tree, path=()):
    for name, node in tree.items():
        yield from _leaves(node, (*path, name)) if isinstance(node, dict) else [((*path, name), node)]


def scanned(tensors):
    """Stacks the layers into one array, under the prefix of a training checkpoint."""
    first = "Transformer/encoderblock_0/"
    stacked = {
        name.replace("_0/", "/", 1): np.stack([value, tensors[name.replace("_0/", "_1/", 1)]])
        for name, value in tensors.items()
        if name.startswith(first)
    }
    others = {name: value for name, value in tensors.items() if "encoderblock_" not in name}
    return {f"params/{name}": value for name, value in {**stacked, **others}.items()}


@pytest.mark.parametrize("old, change", [(True, dict), (False, dict), (False, scanned)])
def test_flax_computes_the_same(tmp_path, images, old, change):
    tensors, expected = reference(old, images)
    np.savez(tmp_path / "w.npz", **change(tensors))
    actual = logits(SPEC, load_weights(tmp_path / "w.npz", SPEC), images)
    np.testing.assert_allclose(actual, expected, atol=1e-5 * np.abs(expected).max(), rtol=0)


@pytest.mark.parametrize(
    "change, words",
    [
        (
            lambda tensors: tensors.update({"MAPHead_0/probe": np.ones((1, 1, 12))}),
            "pools tokens by attention",
        ),
        (lambda tensors: tensors.pop("cls"), "has no class token"),
        (
            lambda tensors: tensors.update({"pre_logits/kernel": np.ones((12, 12))}),
            r"not used: pre_logits/kernel",
        ),
        (lambda tensors: tensors.update({"head/bias": np.ones(7)}), "7 classes, the model 5: num_classes=7"),
        (
            lambda tensors: tensors.pop(
                "Transformer/encoderblock_1/MultiHeadDotProductAttention_0/key/kernel"
            ),
            r"missing block_1/qkv/kernel",
        ),
    ],
)
def test_mismatches_are_named(tmp_path, change, words):
    shapes = jax.eval_shape(Reference(False).init, jax.random.key(0), jnp.zeros((1, 16, 16, 3)))["params"]
    tensors = {"/".join(path): np.zeros(leaf.shape, np.float32) for path, leaf in _leaves(shapes)}
    change(tensors)
    np.savez(tmp_path / "w.npz", **tensors)
    with pytest.raises(UserError, match=words):
        load_weights(tmp_path / "w.npz", SPEC)


def test_positions_are_resized_as_big_vision_does():
    grid = np.random.default_rng(0).normal(size=(5, 5, 3)).astype(np.float32)
    for new in (3, 8):
        expected = scipy.ndimage.zoom(grid, (new / 5, new / 5, 1), order=1).reshape(-1, 3)
        embedding = np.concatenate([np.ones((1, 3), np.float32), grid.reshape(-1, 3)])
        resized = positions.resize_positions(embedding, 1 + new**2, interpolation="linear")
        np.testing.assert_allclose(resized[1:], expected, atol=1e-6)
        np.testing.assert_array_equal(resized[0], 1)
