"""Properties of a whole pass: books that balance, counts that are what runs, decisions that look only back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import MODES, SPACE, make_spec, masked, structures

from prance_jax.models.forward import forward_adaptive
from prance_jax.models.vit import ViT
from prance_jax.spec.macs import token_counts


@pytest.mark.parametrize("official", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_the_books_balance_after_a_whole_pass(mode, official, params, images):
    spec = make_spec(mode, official)
    for seed in range(6):
        drawn = structures(spec, seed)
        tokens = masked(spec)(params, images, drawn).tokens
        sizes, token_of_patch, count = (
            np.asarray(x) for x in (tokens.sizes, tokens.token_of_patch, tokens.count)
        )
        np.testing.assert_array_equal(count, token_counts(spec, drawn).mlp[-1])
        assert count.min() >= min(spec.token_floor, spec.tokens)
        for image in range(len(images)):
            # CLS stands for itself; every other token for the patches that name it as their owner.
            members = np.bincount(token_of_patch[image][token_of_patch[image] >= 0], minlength=spec.tokens)
            members[0] += 1
            np.testing.assert_array_equal(sizes[image], members)
            assert (members[: count[image]] >= 1).all() and (members[count[image] :] == 0).all()
            lost = (token_of_patch[image] < 0).sum()
            if mode == "merge":
                assert lost == 0 and sizes[image].sum() == spec.tokens
            if mode == "prune":
                assert lost == spec.tokens - count[image]


def test_the_count_at_every_decision_is_what_the_counter_says(params, images):
    spec = make_spec("prune_merge")
    drawn = structures(spec, 11)

    @jax.jit
    def counts(structure):
        seen = []

        def decide(group, state):
            seen.append(state.tokens.count)
            return structure.groups[group]

        forward_adaptive(ViT(spec), params, images, structure.groups[0], decide)
        return seen

    wanted = token_counts(spec, drawn)
    for group, count in enumerate(counts(drawn), start=1):
        np.testing.assert_array_equal(count, wanted.attention[SPACE.first_layers[group] - 1])


def test_a_decision_sees_nothing_of_later_choices(params, images):
    """Result-to-Go keeps the prefix of an episode: it must be the same whatever follows."""
    spec = make_spec("merge")

    @jax.jit
    def states(structure):
        kept = []

        def decide(group, state):
            kept.append(state)
            return structure.groups[group]

        forward_adaptive(ViT(spec), params, images, structure.groups[0], decide)
        return kept

    one, other = structures(spec, 1), structures(spec, 2)
    mixed = other._replace(groups=(*one.groups[:2], *other.groups[2:]))
    first, second = states(one), states(mixed)
    for before in range(2):
        jax.tree.map(np.testing.assert_array_equal, first[before], second[before])
    assert float(jnp.abs(first[2].signals.keys - second[2].signals.keys).max()) > 1e-3


def test_where_patches_stand_is_told_by_their_positions_alone(params, images):
    """Permuting patches together with their positions changes no output, whatever is pruned or merged."""
    spec = make_spec("prune_merge")
    drawn, order = structures(spec, 4), np.random.default_rng(0).permutation(spec.patches)
    side, size = spec.image_size // spec.patch_size, spec.patch_size
    patches = np.asarray(images).reshape(-1, side, size, side, size, 3).transpose(0, 1, 3, 2, 4, 5)
    moved = patches.reshape(-1, spec.patches, size, size, 3)[:, order]
    moved = moved.reshape(-1, side, side, size, size, 3).transpose(0, 1, 3, 2, 4, 5).reshape(images.shape)
    positions = params["pos_embed"]
    moved_params = {**params, "pos_embed": positions.at[1:].set(positions[1:][order])}
    wanted = masked(spec)(params, images, drawn)
    found = masked(spec)(moved_params, jnp.asarray(moved), drawn)
    scale = float(jnp.abs(wanted.logits).max())
    np.testing.assert_allclose(found.logits, wanted.logits, rtol=0, atol=1e-5 * scale)
    np.testing.assert_array_equal(found.tokens.token_of_patch, wanted.tokens.token_of_patch[:, order])
