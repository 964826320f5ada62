"""One-step-ahead attention against its paper's text, in plain NumPy: map, groups, map of groups."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import drawn_params, make_spec, quick_jit

from prance_jax.models.reduction import METHODS, ScheduledReduction
from prance_jax.models.token_steps import LayerReduction
from prance_jax.models.vit import ViT
from prance_jax.tokens.schedules import Removed
from prance_jax.tokens.token_set import TokenSet

LAYER, WIDTH = 1, 28


def normed(x, weights):
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    return x * weights["scale"][: x.shape[-1]] + weights["bias"][: x.shape[-1]]


def affine(x, weights, outputs):
    return x @ weights["kernel"][: x.shape[-1], outputs] + weights["bias"][outputs]


def plain(params, x, size, groups, weights_of, heads=2, channels=8):
    """One image: features [N, C], sizes [N], groups as lists of indices.

    weights_of: attention received -> weights [N].
    """
    block, inner = params[f"block_{LAYER}"], heads * channels
    q, k = (
        affine(normed(x, block["norm1"]), block["qkv"], slice(i * inner, (i + 1) * inner)) for i in (0, 1)
    )
    maps = []
    for head in range(heads):
        of_head = slice(head * channels, (head + 1) * channels)
        logits = q[:, of_head] @ k[:, of_head].T / np.sqrt(channels) + np.log(size)
        shares = np.exp(logits - logits.max(1, keepdims=True))
        maps.append(shares / shares.sum(1, keepdims=True))
    weights = weights_of(np.mean(maps, axis=(0, 1)))
    merge = lambda rows: np.stack([weights[g] @ rows[g] / weights[g].sum() for g in groups])
    merged = merge(x)
    v = affine(normed(merged, block["norm1"]), block["qkv"], slice(2 * inner, 3 * inner))
    mixed = []
    for head in range(heads):
        keys = np.stack([maps[head][:, g].sum(1) for g in groups], axis=1)
        mixed.append(merge(keys) @ v[:, head * channels : (head + 1) * channels])
    return merged + affine(np.concatenate(mixed, axis=1), block["proj"], slice(0, WIDTH))


@pytest.mark.parametrize("masked", [False, True])
def test_the_map_is_that_of_the_groups(masked):
    """MCTF's groups. Masked, images have different counts, and invalid tokens hold large numbers."""
    spec, (batch, count), removed = make_spec(), (3, 13), ([2, 0, 5] if masked else [5, 5, 5])
    params, rng, method = drawn_params(spec), np.random.default_rng(0), METHODS["mctf"]
    x = rng.normal(size=(batch, count, WIDTH)).astype(np.float32)
    size = rng.integers(1, 4, (batch, count)).astype(np.float32)
    num_valid = [13, 13, 12] if masked else [13] * 3
    valid = jnp.arange(count) < jnp.asarray(num_valid)[:, None]
    token_of_patch = jnp.zeros((batch, spec.patches), jnp.int32)
    arriving = TokenSet(
        jnp.where(valid[..., None], x, 1e6), jnp.asarray(size), valid if masked else None, token_of_patch
    )
    tokens_after = jnp.asarray(num_valid) - jnp.asarray(removed) if masked else count - 5
    groupings = []

    def group(tokens, signals):
        groupings.append((method.group_ahead(tokens, signals, tokens_after), signals))
        return groupings[-1][0]

    def run(params, tokens):
        apply_attention = lambda model: model.blocks[LAYER].attention_one_step_ahead(
            tokens, WIDTH, WIDTH, group
        )[0]
        attended = ViT(spec).apply({"params": params}, method=apply_attention)
        return attended, *groupings.pop()

    attended, grouping, signals = quick_jit(run)(params, arriving)
    reduced = method.reduce(arriving, signals, tokens_after)
    for image in range(batch):
        of_image = slice(0, num_valid[image])
        new_index = np.asarray(grouping.new_index)[image, of_image]
        groups = [np.flatnonzero(new_index == i) for i in range(new_index.max() + 1)]
        assert len(groups) == num_valid[image] - removed[image]
        expected = plain(
            params,
            x[image, of_image],
            size[image, of_image],
            groups,
            lambda received: received * size[image, of_image],
        )
        np.testing.assert_allclose(attended.features[image, : len(expected)], expected, rtol=1e-4, atol=1e-4)
        # The same groups as after the attention, with the same signals.
        np.testing.assert_array_equal(attended.token_of_patch[image], reduced.token_of_patch[image])
        np.testing.assert_allclose(attended.sizes[image], reduced.sizes[image], rtol=1e-6)


def test_no_gradient_reaches_the_weights_of_a_group_and_one_reaches_the_map(params, images):
    spec = make_spec()
    reduction = ScheduledReduction(METHODS["mctf"], Removed((0, 4, 3)))

    def score(params):
        layer_reduction = reduction.layer_reduction(spec)
        return (
            ViT(spec)
            .apply({"params": params}, images, spec.largest, layer_reduction, method="forward_reduced")
            .logits.sum()
        )

    grads = quick_jit(jax.grad(score))(params)
    qkv = np.asarray(grads["block_1"]["qkv"]["kernel"])
    assert np.isfinite(qkv).all() and all(np.abs(part).max() > 0 for part in np.split(qkv, 3, axis=1))


def test_a_number_of_tokens_for_each_image(params, images):
    """Counts per image in every layer: each image has the result that it has alone with its counts."""
    spec, method = make_spec(), METHODS["mctf"]
    tokens_after = [(17, 13, 10, 10, 8, 7), (17, 17, 17, 17, 17, 17), (17, 12, 12, 9, 9, 5)]
    masked_counts = tuple(jnp.asarray(counts) for counts in zip(*tokens_after))
    run = lambda images, tokens_after: ViT(spec).apply(
        {"params": params},
        images,
        spec.largest,
        LayerReduction(method, tokens_after),
        method="forward_reduced",
    )
    masked_output = quick_jit(run)(images[:3], masked_counts)
    for image, counts in enumerate(tokens_after):
        alone = quick_jit(lambda x, counts=counts: run(x, counts))(images[image : image + 1])
        scale = float(np.abs(alone.logits).max())
        np.testing.assert_allclose(masked_output.logits[image], alone.logits[0], rtol=1e-4, atol=1e-5 * scale)
        np.testing.assert_allclose(
            masked_output.class_token[image], alone.class_token[0], rtol=1e-4, atol=1e-4
        )
        np.testing.assert_array_equal(
            masked_output.tokens.token_of_patch[image], alone.tokens.token_of_patch[0]
        )
