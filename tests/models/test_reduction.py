"""Networks under scheduled reductions: published MACs, dense if nothing is removed, independent images."""

import jax
import numpy as np
import pytest
from small import make_spec

from prance_jax.models.forward import fixed_decisions, forward_adaptive
from prance_jax.models.reduction import (
    METHODS,
    ScheduledReduction,
    forward_reduced,
    reduction_at_macs,
    scheduled_macs,
)
from prance_jax.models.vit import ViT
from prance_jax.spec.model_spec import ModelSpec
from prance_jax.spec.search_space import SPACES
from prance_jax.tokens.schedules import Constant, KeepRate, Kept, Removed, Sites

DEIT = {"T": "deit_tiny", "S": "deit_small", "B": "deit_base"}


def deit(size):
    space = SPACES[DEIT[size]]
    return ModelSpec(space, image_size=224, patch_size=16, num_classes=1000, full_last_layer=True)


def gmacs(size, method, schedule):
    """GMACs as the papers count: no residual maps, and a last layer that computes all tokens."""
    spec = deit(size)
    reduction = ScheduledReduction(METHODS[method], schedule)
    actual = scheduled_macs(spec, spec.largest, reduction)
    return (actual.total - actual.residual_maps) / 1e9


PUBLISHED = [
    ("T", "tome", Constant(0), 1.25),
    ("S", "tome", Constant(0), 4.60),
    ("B", "tome", Constant(0), 17.56),
    *[("T", "tome", Constant(r), value) for r, value in ((4, 1.09), (8, 0.92), (13, 0.73), (16, 0.62))],
    *[("S", "tome", Constant(r), value) for r, value in ((4, 4.00), (8, 3.42), (13, 2.70), (16, 2.29))],
    *[("B", "tome", Constant(r), value) for r, value in ((4, 15.32), (8, 13.10), (13, 10.37), (16, 8.77))],
    *[
        ("S", "evit", KeepRate(rate), value)
        for rate, value in ((0.9, 4.02), (0.8, 3.48), (0.7, 3.03), (0.6, 2.64), (0.5, 2.31))
    ],
    *[("S", "ppt", Sites(r), value) for r, value in ((20, 3.92), (30, 3.58), (50, 2.944), (60, 2.72))],
    ("T", "ppt", Sites(50), 0.80),
    ("B", "ppt", Sites(50), 11.26),
    ("S", "diffrate", Kept((197, 194, 176, 156, 141, 133, 121, 107, 88, 64, 56, 3)), 2.905),
    ("S", "diffrate", Kept((197, 180, 156, 127, 109, 98, 80, 66, 52, 37, 31, 3)), 2.327),
]


@pytest.mark.parametrize("size, method, schedule, published", PUBLISHED)
def test_published_macs(size, method, schedule, published):
    assert gmacs(size, method, schedule) == pytest.approx(published, abs=0.006)


@pytest.mark.parametrize("size, every_layer, three_layers", [("T", 0.71, 0.75), ("S", 2.60, 2.76)])
def test_published_macs_of_mctf(size, every_layer, three_layers):
    """16 tokens removed in all layers but the first; and 35 % removed in three layers ("Fast").

    The authors count 1.26 and 4.61 GMACs for the dense networks, so their error is about 0.01.
    """
    tokens_after = (197, 181, 165, 149, 133, 117, 101, 85, 69, 53, 37, 21)
    assert Removed((0, *[16] * 11)).tokens_after(12, 197) == tokens_after
    assert gmacs(size, "mctf", Kept(tokens_after)) == pytest.approx(every_layer, abs=0.01)
    fast = Kept((197,) * 3 + (129,) * 3 + (85,) * 3 + (56,) * 3)
    assert gmacs(size, "mctf", fast) == pytest.approx(three_layers, abs=0.01)


def test_published_token_counts():
    finals = lambda schedule: schedule.tokens_after(12, 197)[-1]
    assert [finals(KeepRate(rate)) for rate in (0.9, 0.8, 0.7, 0.6, 0.5)] == [148, 105, 72, 46, 28]
    assert [finals(Constant(r)) for r in (4, 8, 10, 12, 13, 14, 16)] == [149, 101, 77, 53, 41, 29, 11]
    assert [finals(Sites(r)) for r in (50, 60)] == [49, 39]
    # A falling ramp removes the most tokens in the first layers.
    assert Constant(8, -1.0).tokens_after(5, 100) == (84, 72, 64, 60, 60)


@pytest.mark.parametrize("method", METHODS)
def test_nothing_removed_is_the_dense_network(method, params, images):
    spec = make_spec()
    nothing = KeepRate(1.0, (2, 5), fused=False) if "evit" in method else Constant(0)
    actual = forward_reduced(
        ViT(spec), params, images, spec.largest, ScheduledReduction(METHODS[method], nothing)
    )
    expected = forward_adaptive(
        ViT(spec), params, images, spec.largest.groups[0], fixed_decisions(spec.largest)
    ).logits
    np.testing.assert_allclose(actual.logits, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_images_of_a_batch_are_independent(method, params, images):
    """Alone, shuffled and among others."""
    spec = make_spec()
    schedule = KeepRate(0.6, (1, 4), fused=method == "evit") if "evit" in method else Removed((0, 4, 0, 3, 2))
    run = jax.jit(
        lambda x: forward_reduced(
            ViT(spec), params, x, spec.largest, ScheduledReduction(METHODS[method], schedule)
        )
    )
    whole, order = run(images), np.array([3, 0, 5, 1, 4, 2])
    shuffled, others = run(images[order]), run(images.at[1:].set(3 * images[:1] + 1))
    np.testing.assert_allclose(shuffled.logits, whole.logits[order], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(others.logits[0], whole.logits[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(shuffled.tokens.token_of_patch, whole.tokens.token_of_patch[order])
    assert (
        whole.tokens.features.shape[1] == ScheduledReduction(METHODS[method], schedule).tokens_after(spec)[-1]
    )
    # If nothing is dropped, a token's size is the number of its patches.
    if method == "tome":
        for token_of_patch, size in zip(whole.tokens.token_of_patch, whole.tokens.size):
            np.testing.assert_array_equal(np.bincount(token_of_patch, minlength=len(size))[1:], size[1:])


def test_attention_is_proportional_to_sizes(params, images):
    """Merging two equal tokens into one of size two does not change the output."""
    spec = make_spec()
    same = {**params, "pos_embed": params["pos_embed"].at[2].set(params["pos_embed"][1])}
    twins = images.at[:, :4, 4:8].set(images[:, :4, :4])
    reduction = ScheduledReduction(METHODS["tome"], Removed((1,)))
    actual = forward_reduced(ViT(spec), same, twins, spec.largest, reduction)
    expected = forward_adaptive(
        ViT(spec), same, twins, spec.largest.groups[0], fixed_decisions(spec.largest)
    ).logits
    np.testing.assert_allclose(actual.logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_a_schedule_for_given_macs(method):
    """The finest step is one token in each layer."""
    spec = deit("S")
    full = scheduled_macs(spec, spec.largest, ScheduledReduction(METHODS[method], Constant(0))).total
    for share in (0.5, 0.7, 1.0):
        reduction = reduction_at_macs(spec, spec.largest, method, share * full)
        assert scheduled_macs(spec, spec.largest, reduction).total / full == pytest.approx(share, abs=0.025)


def test_mctf_reduces_the_first_layer_only_if_needed():
    """A layer can remove half of its tokens at most, so on six layers a low target needs the first."""
    spec = make_spec()
    full = scheduled_macs(spec, spec.largest, ScheduledReduction(METHODS["mctf"], Constant(0))).total
    tokens_after = {
        share: reduction_at_macs(spec, spec.largest, "mctf", share * full).tokens_after(spec)
        for share in (0.6, 0.35)
    }
    assert tokens_after == {0.6: (17, 13, 9, 5, 3, 2), 0.35: (11, 6, 4, 3, 2, 2)}
