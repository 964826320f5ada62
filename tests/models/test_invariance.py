"""Properties of a forward pass: sizes and counts are consistent, decisions depend only on earlier layers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import MODES, SPACE, make_spec, masked, structures

from prance_jax.models.forward import forward_adaptive
from prance_jax.models.vit import ViT
from prance_jax.spec.token_counts import token_counts, tokens_after_layers


@pytest.mark.parametrize("official", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_sizes_and_counts_are_consistent(mode, official, params, images):
    spec = make_spec(mode, official)
    for seed in range(6):
        sampled = structures(spec, seed)
        tokens = masked(spec)(params, images, sampled).tokens
        sizes, token_of_patch, count = (
            np.asarray(x) for x in (tokens.sizes, tokens.token_of_patch, tokens.count)
        )
        np.testing.assert_array_equal(count, tokens_after_layers(spec, sampled)[-1])
        assert count.min() >= min(spec.token_floor, spec.tokens)
        for image in range(len(images)):
            # CLS contains itself, every other token the patches whose `token_of_patch` is its index.
            members = np.bincount(token_of_patch[image][token_of_patch[image] >= 0], minlength=spec.tokens)
            members[0] += 1
            np.testing.assert_array_equal(sizes[image], members)
            assert (members[: count[image]] >= 1).all() and (members[count[image] :] == 0).all()
            num_lost = (token_of_patch[image] < 0).sum()
            if mode == "merge":
                assert num_lost == 0 and sizes[image].sum() == spec.tokens
            if mode == "prune":
                assert num_lost == spec.tokens - count[image]


def test_token_counts_at_every_decision(params, images):
    spec = make_spec("prune_merge")
    sampled = structures(spec, 11)

    @jax.jit
    def counts(structure):
        result = []

        def decide(group, state):
            result.append(state.tokens.count)
            return structure.groups[group]

        forward_adaptive(ViT(spec), params, images, structure.groups[0], decide)
        return result

    expected = token_counts(spec, sampled)
    for group, count in enumerate(counts(sampled), start=1):
        np.testing.assert_array_equal(count, expected.attention[SPACE.first_layers[group] - 1])


def test_a_state_does_not_depend_on_later_choices(params, images):
    """Result-to-Go reuses the start of an episode, so it must not depend on what follows."""
    spec = make_spec("merge")

    @jax.jit
    def states(structure):
        result = []

        def decide(group, state):
            result.append(state)
            return structure.groups[group]

        forward_adaptive(ViT(spec), params, images, structure.groups[0], decide)
        return result

    first_structure, other = structures(spec, 1), structures(spec, 2)
    mixed = other._replace(groups=(*first_structure.groups[:2], *other.groups[2:]))
    first, second = states(first_structure), states(mixed)
    for before in range(2):
        jax.tree.map(np.testing.assert_array_equal, first[before], second[before])
    assert float(jnp.abs(first[2].signals.keys - second[2].signals.keys).max()) > 1e-3


def test_the_order_of_patches_does_not_matter(params, images):
    """Patches permuted together with their position embeddings give the same output."""
    spec = make_spec("prune_merge")
    sampled, order = structures(spec, 4), np.random.default_rng(0).permutation(spec.patches)
    side, size = spec.image_size // spec.patch_size, spec.patch_size
    patches = np.asarray(images).reshape(-1, side, size, side, size, 3).transpose(0, 1, 3, 2, 4, 5)
    moved = patches.reshape(-1, spec.patches, size, size, 3)[:, order]
    moved = moved.reshape(-1, side, side, size, size, 3).transpose(0, 1, 3, 2, 4, 5).reshape(images.shape)
    positions = params["pos_embed"]
    moved_params = {**params, "pos_embed": positions.at[1:].set(positions[1:][order])}
    expected = masked(spec)(params, images, sampled)
    actual = masked(spec)(moved_params, jnp.asarray(moved), sampled)
    scale = float(jnp.abs(expected.logits).max())
    np.testing.assert_allclose(actual.logits, expected.logits, rtol=0, atol=1e-5 * scale)
    np.testing.assert_array_equal(actual.tokens.token_of_patch, expected.tokens.token_of_patch[:, order])
