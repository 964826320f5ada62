"""A look of refined cells against NumPy: which cells are split, their tokens, and what they add up to."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cascade.examples import SHORT, drawn_images, drawn_params, two_looks, vit
from small import quick_jit

from prance_jax.cascade.looks import cell_scores
from prance_jax.cascade.passes import forward_look
from prance_jax.core.errors import UserError
from prance_jax.models.elastic import mask_channels
from prance_jax.models.forward import forward_first_group
from prance_jax.models.vit import ViT
from prance_jax.spec.cascade import CascadeSpec, Look
from prance_jax.tokens.token_set import TokenSet
from prance_jax.tokens.unmerge import unmerge, values_of_patches

WIDTH, SIDE, CELLS, BATCH = SHORT.super_width, 4, 4, 3
SCORES = np.array([[0.1, 0.4, 0.3, 0.2], [0.2, 0.2, 0.5, 0.2], [4, 3, 2, 1]], np.float32)


def expected_tokens(spec, params, images, scores, added):
    """Features of the tokens one by one, and the token of every patch."""
    kernel, bias = params["patch_embed"]["kernel"], params["patch_embed"]["bias"]
    size, prefix = spec.patch_size, spec.class_tokens
    features, token_of_patches = [], []
    for image, score, addend in zip(images, scores, added):
        class_tokens = [params[name] for name in ("cls_token", "dist_token")[:prefix]]
        tokens = [t + params["pos_embed"][i] + addend[i] for i, t in enumerate(class_tokens)]
        token_of_patch = np.zeros(SIDE * SIDE, int)
        for rank, cell in enumerate(sorted(range(CELLS), key=lambda cell: (-score[cell], cell))):
            top, left = 2 * (cell // 2), 2 * (cell % 2)
            patches = [(top + i) * SIDE + left + j for i in (0, 1) for j in (0, 1)]
            extra = np.stack([params["pos_embed"][prefix + p] + addend[prefix + p] for p in patches])
            if rank < spec.refined_cells:
                for patch, more in zip(patches, extra):
                    row, column = size * (patch // SIDE), size * (patch % SIDE)
                    piece = image[row : row + size, column : column + size]
                    token_of_patch[patch] = len(tokens)
                    tokens.append(piece.reshape(-1) @ kernel + bias + more)
            else:
                row, column = size * top, size * left
                piece = image[row : row + 2 * size, column : column + 2 * size]
                pooled = (piece[::2, ::2] + piece[1::2, ::2] + piece[::2, 1::2] + piece[1::2, 1::2]) / 4
                token_of_patch[patches] = len(tokens)
                tokens.append(pooled.reshape(-1) @ kernel + bias + extra.mean(axis=0))
        features.append(tokens)
        token_of_patches.append(token_of_patch)
    return np.asarray(features), np.asarray(token_of_patches)


@pytest.mark.parametrize("refined_cells, distilled", [(2, False), (1, True), (0, False)])
def test_tokens_of_split_and_whole_cells(refined_cells, distilled):
    """At full width, and at a narrow width per image: leading channels, zeros behind them."""
    spec = vit(space=SHORT, channels=3, distilled=distilled, refined_cells=refined_cells)
    params = drawn_params(CascadeSpec((Look(spec),)))["look_0"]
    rng = np.random.default_rng(0)
    images = rng.standard_normal((BATCH, 16, 16, 3)).astype(np.float32)
    added = rng.standard_normal((BATCH, spec.positions, WIDTH)).astype(np.float32)
    features, token_of_patch = expected_tokens(spec, params, images, SCORES, added)
    assert features.shape[1] == spec.tokens == spec.class_tokens + 4 + 3 * refined_cells

    @quick_jit
    def run(added, width):
        embed = lambda width, added: ViT(spec).apply(
            {"params": params}, images, width, added, SCORES, method="initial_tokens"
        )
        tokens = embed(WIDTH, added)
        return tokens, tokens.members, unmerge(tokens), embed(width, mask_channels(added, width)).features

    tokens, members, grid, narrow = jax.device_get(run(added, np.full(BATCH, 8)))
    np.testing.assert_allclose(tokens.features, features, atol=1e-5)
    np.testing.assert_array_equal(tokens.token_of_patch, token_of_patch)
    np.testing.assert_array_equal(
        members[:, spec.class_tokens :], BATCH * [refined_cells * [1] * 4 + (CELLS - refined_cells) * [4]]
    )
    np.testing.assert_array_equal(
        grid, np.take_along_axis(tokens.features, token_of_patch[:, :, None], axis=1)
    )
    # What a narrow look gets added is narrow, too.
    np.testing.assert_allclose(narrow[:, :, :8], features[:, :, :8], atol=1e-5)
    assert not narrow[:, :, 8:].any()


def test_an_attention_of_patches_becomes_one_of_cells():
    """A cell gets the mean of its patches, the value of its patch, or that of the patch that contains it."""
    attention = np.random.default_rng(0).random((2, 16)).astype(np.float32)
    grid = attention.reshape(2, 4, 4)
    means = [[grid[:, i : i + 2, j : j + 2].mean(axis=(1, 2)) for j in (0, 2)] for i in (0, 2)]
    np.testing.assert_allclose(cell_scores(attention, 4), np.moveaxis(means, 2, 0).reshape(2, 4), rtol=1e-6)
    np.testing.assert_array_equal(cell_scores(attention, 16), attention)
    repeated = np.asarray(cell_scores(attention, 64)).reshape(2, 8, 8)
    for row in range(8):
        for column in range(8):
            np.testing.assert_array_equal(repeated[:, row, column], grid[:, row // 2, column // 2])


def test_pruned_patches_have_no_attention():
    tokens = TokenSet(jnp.zeros((1, 3, 2)), None, None, jnp.array([[2, -1, 2, 1]]))
    values = values_of_patches(tokens, jnp.array([[0.5, 0.2, 0.3]]))
    np.testing.assert_allclose(values, [[0.3, 0.0, 0.3, 0.2]])


def refined_looks(refined_cells, **changes) -> CascadeSpec:
    return two_looks(**{"space": SHORT, "refined_cells": refined_cells, **changes})


def run_both(spec, structure):
    """(params, images) -> output of the first look under a structure, and of the second one after it."""

    def run(params, images):
        first = forward_look(spec, params, images, 0, structure)
        return first, forward_look(spec, params, images, 1, spec.last.largest, (0, first.state))

    return run


@pytest.mark.parametrize("image_size", [8, 16])
def test_the_most_attended_cells_are_split(image_size):
    """The attention of CLS in the first look's last layer, whose tokens are pruned after it."""
    spec = refined_looks(2, first={"image_size": image_size})
    params, images = drawn_params(spec), drawn_images(spec, BATCH)
    structure = SHORT.uniform(WIDTH, 2, (0.4,))
    first, second = jax.device_get(quick_jit(run_both(spec, structure))(params, images))

    # The last group of the first look has one layer. Its attention is of all patches, in the order of group 0.
    side = image_size // 4
    attention = first.state.signals.cls_attention[:, 1:].reshape(BATCH, side, side)
    step = side // 2
    scores = attention.reshape(BATCH, 2, step, 2, step).mean(axis=(2, 4)).reshape(BATCH, CELLS)
    for image in range(BATCH):
        is_split = np.zeros(CELLS, bool)
        is_split[np.argsort(-scores[image])[:2]] = True
        token_of_patch = second.state.tokens.token_of_patch[image].reshape(2, 2, 2, 2)
        cells = token_of_patch.transpose(0, 2, 1, 3).reshape(CELLS, 4).tolist()
        assert [len(set(cell)) for cell in cells] == np.where(is_split, 4, 1).tolist()


def test_with_all_cells_split_the_answer_is_that_of_all_patches():
    """And with fewer it is another."""
    some, every = refined_looks(1, shares="all"), refined_looks(CELLS, shares="all")
    params, images = drawn_params(every), drawn_images(every, BATCH)
    structure = SHORT.uniform(WIDTH, 2, (0.4,))
    runs = [run_both(spec, structure) for spec in (every.unrefined, every, some)]
    together = quick_jit(lambda params, images: [run(params, images)[1].answers for run in runs])
    for all_patches, all_cells, one_cell in zip(*jax.device_get(together(params, images))):
        np.testing.assert_allclose(all_cells, all_patches, atol=1e-5)
        assert np.abs(one_cell - all_patches).max() > 0.01


def test_scores_are_needed_exactly_for_refined_cells():
    spec = vit(space=SHORT, refined_cells=2)
    params, images = (
        drawn_params(CascadeSpec((Look(spec),)))["look_0"],
        np.zeros((BATCH, 16, 16, 1), np.float32),
    )
    with pytest.raises(UserError, match="refined_cells=2 got no scores; give scores of its cells exactly if"):
        ViT(spec).apply({"params": params}, images)
    with pytest.raises(UserError, match="refined_cells=None got scores"):
        forward_first_group(
            ViT(spec.unrefined), params, images, spec.largest.groups[0], scores=jnp.asarray(SCORES)
        )


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"refined_cells": 5},
            "refined_cells=5 .* must be 0 to the number of cells; there are 4 .* and 4 cells",
        ),
        ({"refined_cells": -1}, "refined_cells=-1 "),
        ({"refined_cells": 1, "image_size": 12}, "even number of patches on a side .* there are 3 patches"),
        ({"refined_cells": 1, "pixels": True}, "no grid of tokens, .* pixels=True"),
        ({"refined_cells": 1, "method": "cait"}, "pixels=False and 'cait'"),
    ],
)
def test_networks_that_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        vit(**changes)
    assert dataclasses.replace(vit(refined_cells=1)).unrefined == vit()
