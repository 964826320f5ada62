"""Masked execution equals compact, images are independent, and inactive values do not matter."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import MODES, SPACE, compact, make_spec, masked, structures

from prance_jax.models.forward import fixed_decisions, forward_adaptive, forward_first_group
from prance_jax.models.token_steps import forward_layers, layer_sizes
from prance_jax.models.vit import ViT


def close(a, b, tolerance=1e-5):
    np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * float(np.abs(np.asarray(b)).max()))


@pytest.mark.parametrize("official", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_masked_equals_compact(mode, official, params, images):
    spec = make_spec(mode, official)
    sampled = structures(spec, 1 + official)
    outcome = masked(spec)(params, images, sampled)
    for index in (0, 4):
        structure = sampled.image(index)
        single = compact(spec, params, images[index : index + 1], structure)
        close(outcome.logits[index], single.logits[0])
        tokens_after = single.tokens.features.shape[1]
        assert int(outcome.tokens.count[index]) == tokens_after
        np.testing.assert_array_equal(outcome.tokens.token_of_patch[index], single.tokens.token_of_patch[0])
        close(outcome.tokens.sizes[index, :tokens_after], single.tokens.sizes[0])
        width = structure.widths[-1]
        close(outcome.tokens.features[index, :tokens_after, :width], single.tokens.features[0])


@pytest.mark.parametrize("mode", ["merge", "prune_merge"])
def test_masked_equals_compact_when_merging_by_size(mode, params, images):
    """A token that an earlier decision removed has weight 0, which must not give 0 / 0."""
    spec = make_spec(mode, weighted_merge=True)
    sampled = structures(spec, 1)
    outcome = masked(spec)(params, images, sampled)
    assert np.isfinite(outcome.tokens.features).all()
    single = compact(spec, params, images[:1], sampled.image(0))
    close(outcome.logits[0], single.logits[0])


@pytest.mark.parametrize("mode", ["prune", "merge"])
def test_masked_equals_compact_in_bfloat16(mode, params, images):
    spec = make_spec(mode, dtype="bfloat16")
    # All tokens are kept, since near ties may rank differently in two executions at 16 bits.
    sampled = SPACE.sample(jax.random.key(0), len(images), ((1.0,),))
    outcome = masked(spec)(params, images, sampled)
    assert outcome.logits.dtype == jnp.float32
    single = compact(spec, params, images[:1], sampled.image(0))
    close(outcome.logits[0], single.logits[0], 0.05)


def test_a_static_group_before_per_image_groups(params, images):
    """As in use: the first group is fixed, the selector decides on the others."""
    spec = make_spec("prune_merge")
    first, sampled = SPACE.first_group("24x2"), structures(spec, 3)
    mixed = sampled._replace(groups=(first, *sampled.groups[1:]))
    arrays = sampled._replace(
        groups=(jax.tree.map(lambda leaf: jnp.full(len(images), leaf), first), *sampled.groups[1:])
    )
    partly = jax.jit(
        lambda params, images, later_groups: (
            forward_adaptive(
                ViT(spec),
                params,
                images,
                first,
                fixed_decisions(sampled._replace(groups=(first, *later_groups))),
            ).logits
        )
    )
    close(partly(params, images, mixed.groups[1:]), masked(spec)(params, images, arrays).logits)


@pytest.mark.parametrize("mode", MODES)
def test_images_of_a_batch_are_independent(mode, params, images):
    spec = make_spec(mode)
    sampled = structures(spec, 5)
    logits = masked(spec)(params, images, sampled).logits
    order = jnp.array([3, 0, 5, 1, 4, 2])
    pick = lambda index: jax.tree.map(lambda leaf: leaf[index], sampled)
    close(masked(spec)(params, images[order], pick(order)).logits, logits[order], 1e-6)
    close(masked(spec)(params, images[2:3], pick(slice(2, 3))).logits, logits[2:3])


@pytest.mark.parametrize("mode", MODES)
def test_inactive_channels_and_dropped_tokens_do_not_matter(mode, params, images):
    spec = make_spec(mode)
    model, sampled = ViT(spec), structures(spec, 7)
    run = functools.partial(model.apply, {"params": params})

    def forward_head(state, group):
        for index in range(group, SPACE.groups):
            state = run(state, sampled.groups[index], index, method="forward_group")
        return run(state, method="forward_head")

    state = forward_first_group(model, params, images, sampled.groups[0])
    expected = forward_head(state, 1)
    for group in range(1, SPACE.groups):
        tokens, width = state.tokens, jnp.asarray(state.width)[:, None, None]
        noise = jnp.where(jnp.arange(tokens.features.shape[2]) < width, tokens.features, 1e6)
        if tokens.valid is not None:
            noise = jnp.where(tokens.valid[:, :, None], noise, 1e6)
        size = None if tokens.size is None else jnp.where(tokens.valid, tokens.size, 1e6)
        poisoned = state._replace(tokens=tokens._replace(features=noise, size=size))
        np.testing.assert_array_equal(forward_head(poisoned, group), forward_head(state, group))
        state = run(state, sampled.groups[group], group, method="forward_group")
    np.testing.assert_array_equal(run(state, method="forward_head"), expected)


def test_weights_outside_the_slices_do_not_matter(params, images):
    """A structure of narrow layers reads only leading slices; all other weights are set to 1e6."""
    spec = make_spec("prune")
    narrow = SPACE.smallest((0.5,))
    large = jax.tree.map(lambda leaf: jnp.full_like(leaf, 1e6), params)
    width, mlp_dim = SPACE.widths[0], SPACE.mlp_dim(SPACE.widths[0], SPACE.ratios[0])

    def copy_slices(path, source, target):
        name = jax.tree_util.keystr(path)
        slices = [
            slice(0, width) if size == SPACE.super_width else slice(0, mlp_dim) if size == 96 else slice(None)
            for size in source.shape
        ]
        if "qkv" in name and "bias" in name or "head" in name and "bias" in name:
            slices = [slice(None)]
        if "qkv" in name and "kernel" in name:
            slices = [slice(0, width), slice(None)]
        return target.at[tuple(slices)].set(source[tuple(slices)])

    poisoned = jax.tree_util.tree_map_with_path(copy_slices, params, large)
    expected = compact(spec, params, images, narrow).logits
    np.testing.assert_array_equal(compact(spec, poisoned, images, narrow).logits, expected)
    arrays = jax.tree.map(lambda leaf: jnp.full(len(images), leaf), narrow)
    close(masked(spec)(poisoned, images, arrays).logits, expected)


def test_gradients_agree(params, images):
    spec = make_spec("prune_merge")
    static = SPACE.uniform(24, 2, (0.6, 0.7))
    arrays = jax.tree.map(lambda leaf: jnp.full(len(images), leaf), static)
    score = lambda params, structure: jnp.sum(jnp.sin(ViT(spec).apply({"params": params}, images, structure)))
    compact = jax.jit(jax.grad(lambda params: score(params, static)))(params)
    full = jax.jit(jax.grad(score))(params, arrays)
    scale = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(compact))
    chex.assert_trees_all_close(full, compact, rtol=1e-4, atol=1e-5 * scale)


def test_structures_are_data_not_shapes(params, images):
    """Other structures cause no new trace."""
    spec = make_spec("prune")
    counted = chex.assert_max_traces(
        lambda p, x, s: forward_adaptive(ViT(spec), p, x, s.groups[0], fixed_decisions(s)).logits, n=1
    )
    run = jax.jit(counted)
    for seed in range(4):
        run(params, images, structures(spec, seed))


def test_keep_rate_1_is_a_plain_vit(params, images):
    """With all tokens kept, pruning only permutes patches, whose order does not matter to attention."""
    spec = make_spec("prune")
    everything = SPACE.largest()

    def plain(model, images):
        sizes = layer_sizes(everything)
        tokens = model.initial_tokens(images, sizes[0].width_in)
        tokens, _, _ = forward_layers(model.blocks, tokens, range(SPACE.depth), sizes)
        return model.head_logits(model.apply_last_mlp(tokens, sizes[-1]), sizes[-1].width)

    expected = jax.jit(lambda params, images: ViT(spec).apply({"params": params}, images, method=plain))
    close(compact(spec, params, images, everything).logits, expected(params, images))
