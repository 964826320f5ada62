"""Weights of looks, and the tokens that a look hands to the next."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cascade.examples import SHORT, drawn_images, drawn_params, two_looks, vit
from small import logits, quick_jit

from prance_jax.cascade.looks import (
    init_from_network,
    init_params,
    look_params,
    recycle_tokens,
    resize_images,
    resize_positions,
)
from prance_jax.cascade.passes import forward_look
from prance_jax.models.forward import init_params as init_network
from prance_jax.models.outputs import GroupState
from prance_jax.models.vit import ViT
from prance_jax.spec.cascade import SHARES, CascadeSpec, Look
from prance_jax.tokens.token_set import TokenSet

WIDTH = SHORT.super_width


def paths(tree):
    return {jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)}


def identity_maps(class_scale=1.0):
    """Weights that hand on normalised features as they are; class tokens times a number."""
    zero, one = np.zeros(WIDTH, np.float32), np.ones(WIDTH, np.float32)
    return {
        "norm": {"scale": one, "bias": zero},
        "class_tokens": {"kernel": class_scale * np.eye(WIDTH, dtype=np.float32), "bias": zero},
        "patches": {"kernel": np.eye(WIDTH, dtype=np.float32), "bias": zero},
    }


def state_of(features, token_of_patch):
    """A state at full width whose tokens have mean 0 and variance 1, so that the norm changes nothing."""
    features = np.asarray(features, np.float32)
    features = (features - features.mean(-1, keepdims=True)) / features.std(-1, keepdims=True)
    tokens = TokenSet(jnp.asarray(features), None, None, jnp.asarray(token_of_patch, jnp.int32))
    return features, GroupState(tokens, None, WIDTH, 2 * WIDTH, None)


def recycled(spec, target, features, token_of_patch, **maps):
    features, state = state_of(features, token_of_patch)
    return features, np.asarray(recycle_tokens(identity_maps(**maps), spec, target, state, WIDTH))


def test_pruned_patches_get_zero_and_merged_ones_the_same():
    rng, spec = np.random.default_rng(0), vit(image_size=8)
    # Four patches: 0 and 2 are merged in token 2, 1 is pruned, 3 is token 1.
    features, grid = recycled(spec, spec, rng.standard_normal((1, 3, WIDTH)), [[2, -1, 2, 1]], class_scale=2)
    expected = np.stack(
        [2 * features[0, 0], features[0, 2], 0 * features[0, 0], features[0, 2], features[0, 1]]
    )
    np.testing.assert_allclose(grid[0], expected, atol=1e-5)


def test_two_class_tokens_keep_their_places():
    rng, spec = np.random.default_rng(0), vit(image_size=8, distilled=True)
    features, grid = recycled(spec, spec, rng.standard_normal((1, 4, WIDTH)), [[3, 2, -1, 3]], class_scale=-1)
    expected = np.stack(
        [-features[0, 0], -features[0, 1], features[0, 3], features[0, 2], 0 * features[0, 0], features[0, 3]]
    )
    np.testing.assert_allclose(grid[0], expected, atol=1e-5)


def test_a_grid_is_resized_bilinearly():
    """From 2 to 4 patches a side, the centres of the new ones lie at -1/4, 1/4, 3/4 and 5/4 of the old spacing."""
    rng, spec, target = np.random.default_rng(0), vit(image_size=8), vit(image_size=16)
    features, grid = recycled(spec, target, rng.standard_normal((1, 5, WIDTH)), [[1, 2, 3, 4]])
    to_four = np.array([[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]])
    old = features[0, 1:].reshape(2, 2, WIDTH)
    expected = np.einsum("ia,jb,abc->ijc", to_four, to_four, old).reshape(16, WIDTH)
    np.testing.assert_allclose(grid[0, 1:], expected, atol=1e-5)
    np.testing.assert_allclose(grid[0, 0], features[0, 0], atol=1e-5)


def test_images_are_resized_by_means_where_pieces_fit():
    images = np.random.default_rng(0).standard_normal((2, 12, 12, 1)).astype(np.float32)
    for size in (6, 4):
        step = 12 // size
        expected = [
            [images[:, i : i + step, j : j + step].mean(axis=(1, 2)) for j in range(0, 12, step)]
            for i in range(0, 12, step)
        ]
        np.testing.assert_allclose(resize_images(images, size), np.moveaxis(expected, 2, 0), atol=1e-6)
    assert resize_images(images, 12) is images


def test_half_the_size_is_bilinear_interpolation_without_antialiasing():
    """CF-ViT shrinks by `interpolate(mode="bilinear")`, whose samples lie in the middle of four pixels."""
    images = np.random.default_rng(1).standard_normal((1, 8, 8, 3)).astype(np.float32)
    plain = jax.image.resize(images, (1, 4, 4, 3), "linear", antialias=False)
    np.testing.assert_allclose(resize_images(images, 4), plain, atol=1e-6)


def test_other_sizes_are_resized_with_antialiasing():
    """From 6 to 4 pixels: a triangle of three pixels around (i + 0.5) x 1.5, its weights divided by their sum."""
    images = np.random.default_rng(0).standard_normal((2, 6, 6, 1)).astype(np.float32)
    centres, pixels = (np.arange(4)[:, None] + 0.5) * 1.5, np.arange(6)[None] + 0.5
    weights = np.maximum(1 - np.abs(pixels - centres) / 1.5, 0)
    weights /= weights.sum(axis=1, keepdims=True)
    expected = np.einsum("ia,jb,nabc->nijc", weights, weights, images)
    np.testing.assert_allclose(resize_images(images, 4), expected, atol=1e-5)


def test_positions_of_class_tokens_are_not_resized():
    spec, target = vit(image_size=8, distilled=True), vit(image_size=16, distilled=True)
    positions = np.random.default_rng(0).standard_normal((spec.tokens, WIDTH)).astype(np.float32)
    resized = np.asarray(resize_positions(jnp.asarray(positions), spec, target))
    assert resized.shape == (target.tokens, WIDTH)
    np.testing.assert_array_equal(resized[:2], positions[:2])
    np.testing.assert_allclose(resized[2], positions[2], atol=1e-6)  # the corner stays
    same = resize_positions(jnp.asarray(positions), spec, spec)
    np.testing.assert_array_equal(same, positions)


@functools.lru_cache(maxsize=None)
def both_looks(spec):
    """(params, images) -> answers of the first look, and of the second one with and without its tokens."""

    def run(params, images):
        first = forward_look(spec, params, images, 0, spec.looks[0].spec.largest)
        before = 0, first.state
        with_tokens = forward_look(spec, params, images, 1, spec.last.largest, before).answers
        return first.answers, with_tokens, forward_look(spec, params, images, 1, spec.last.largest).answers

    return run


def test_with_maps_at_zero_the_second_look_is_a_plain_vit():
    """And other maps change its answers."""
    spec = two_looks("prune", "all", space=SHORT)
    params, images = drawn_params(spec), drawn_images(spec, 3)
    zeros = {
        **params["recycle_1"],
        **{
            name: jax.tree.map(np.zeros_like, params["recycle_1"][name])
            for name in ("class_tokens", "patches")
        },
    }
    run = quick_jit(both_looks(spec))
    _, second, alone = run({**params, "recycle_1": zeros}, images)
    expected = logits(spec.last, params["look_1"], images)
    np.testing.assert_allclose(second[-1], expected, atol=1e-5)
    np.testing.assert_allclose(alone[-1], expected, atol=1e-5)
    assert np.abs(np.asarray(run(params, images)[1][-1]) - expected).max() > 0.01


@pytest.mark.parametrize("shares", SHARES)
def test_what_is_shared(shares):
    """'all': everything but positions and classifiers. 'all_but_norms': nor norms and biases."""
    spec = two_looks("prune", shares, distilled=True)
    shapes = jax.eval_shape(lambda: init_params(spec, jax.random.key(0)))
    unshared, everything = paths(shapes["look_0"]), paths(shapes["look_1"])
    heads = ("['pos_embed']", "['norm']", "['head']", "['head_dist']", "['exit_0']")
    if shares == "none":
        assert unshared == everything
    else:
        expected = {path for path in everything if path.startswith(heads)}
        if shares == "all_but_norms":
            expected |= {path for path in everything if path.endswith("['bias']") or "['norm" in path}
        assert unshared == expected
    whole = jax.eval_shape(lambda params: look_params(spec, params, 0), shapes)
    assert paths(whole) == everything and whole["pos_embed"].shape == (6, WIDTH)
    assert (set(shapes) == {"look_0", "look_1", "recycle_1"}) and look_params(spec, shapes, 1) is shapes[
        "look_1"
    ]


@pytest.mark.parametrize("shares", SHARES)
def test_gradients_of_the_first_look(shares):
    """They reach the shared weights of the last look, and no others of it."""
    spec = two_looks("prune", shares, space=SHORT)
    params, images = drawn_params(spec), drawn_images(spec, 2)

    def loss(params):
        answers = forward_look(spec, params, images, 0, spec.looks[0].spec.largest).answers
        return sum(jnp.sum(jnp.sin(answer)) for answer in answers)

    gradient = jax.device_get(quick_jit(jax.grad(loss))(params))
    reached = {
        name: {path for path in paths(gradient[name]) if np.any(_leaf(gradient[name], path))}
        for name in gradient
    }
    # Key biases shift all logits of a query equally, but query and value biases count.
    assert reached["look_0"] == paths(params["look_0"])
    shared = paths(params["look_1"]) - paths(params["look_0"])
    assert reached["look_1"] == (shared if shares != "none" else set()) and not reached["recycle_1"]


def _leaf(tree, path):
    return dict((jax.tree_util.keystr(p), leaf) for p, leaf in jax.tree_util.tree_leaves_with_path(tree))[
        path
    ]


def start_from(network_exits, shares, **first):
    """A cascade of two looks from a network: spec, the network's parameters, those of the cascade."""
    spec = two_looks("prune", shares, first, space=SHORT)
    alone = CascadeSpec((Look(dataclasses.replace(spec.last, exits=network_exits)),))
    network = drawn_params(alone)["look_0"]
    params = init_from_network(spec, network, jax.random.key(0))
    shapes = jax.eval_shape(lambda: init_params(spec, jax.random.key(0)))
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(lambda leaf: leaf.shape, shapes)
    return spec, network, params


def assert_same(actual, expected):
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


def test_a_first_look_on_the_same_grid_answers_as_the_network():
    """And the second look as if there were none before it; exits begin like the head."""
    spec, network, params = start_from((), "none", image_size=16)
    images = drawn_images(spec, 2)
    first, second, alone = jax.device_get(quick_jit(both_looks(spec))(params, images))
    expected = logits(dataclasses.replace(spec.last, exits=()), network, images)
    for answers in (first, second, alone):
        np.testing.assert_allclose(answers[-1], expected, atol=1e-5)
        np.testing.assert_allclose(answers[0], first[0], atol=1e-5)
    for look in ("look_0", "look_1"):
        assert_same(params[look]["exit_0"], {"norm": network["norm"], "head": network["head"]})


def test_exits_of_the_network_are_kept_where_a_look_has_them():
    spec, network, params = start_from((0,), "all", exits=())
    assert_same(params["look_1"], network)
    chosen = look_params(spec, params, 0)
    assert "exit_0" not in params["look_0"] and chosen["pos_embed"].shape == (5, WIDTH)
    for name in ("block_0", "cls_token", "patch_embed", "norm", "head"):
        assert_same(chosen[name], network[name])


def test_a_look_of_another_patch_size_starts_at_random():
    spec, network, params = start_from((0,), "none", patch_size=2)
    fresh = init_params(spec, jax.random.key(0))
    assert_same(params["look_0"], fresh["look_0"])
    assert_same(params["look_1"], network)
    # The last look starts as it would alone.
    assert_same(fresh["look_1"], init_network(ViT(spec.last), jax.random.key(0)))
