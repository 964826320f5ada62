"""Networks that classify every pixel from reduced tokens, and the embedded task that measures them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import PAIR, SHORT, compact, drawn_params, logits, make_spec, masked, quick_jit, structures
from spec.test_macs import product_flops

from prance_jax.baselines.predictor_config import PredictorConfig
from prance_jax.baselines.predictor_vit import PredictorViT
from prance_jax.core.errors import UserError
from prance_jax.data.digits.digits import load_digits_source
from prance_jax.data.digits.masks import DigitMasks
from prance_jax.data.digits.render import DigitsConfig
from prance_jax.evaluation.miou import confusion_matrix, overlap_from_confusion
from prance_jax.models.reduction import (
    METHODS,
    ScheduledReduction,
    forward_reduced,
    forward_segmenter,
    scheduled_macs,
)
from prance_jax.models.vit import ViT
from prance_jax.spec.macs import count_parameters, macs
from prance_jax.spec.model_spec import ModelSpec
from prance_jax.spec.search_space import SearchSpace
from prance_jax.spec.token_counts import token_counts
from prance_jax.tokens.schedules import KeepRate, Removed

ORDER = np.array([3, 0, 5, 1, 4, 2])


def pixel_spec(mode="prune", space=PAIR):
    return make_spec(mode, space=space, pixels=True, num_classes=3)


@pytest.fixture(scope="module")
def pixel_params():
    """Parameters of the pixel network, the same for every mode."""
    return drawn_params(pixel_spec())


def assert_close(actual, expected):
    scale = float(np.abs(np.asarray(expected)).max())
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5 * scale)


def test_pixels_come_from_their_patch(pixel_params, images):
    """The head's bias of one pixel of a patch changes that pixel of every patch, and no other."""
    before = logits(pixel_spec(), pixel_params, images)
    assert before.shape == (6, 16, 16, 3)
    size, pixel = 4, 4 * 1 + 2  # row 1, column 2 of each patch, class 0
    bias = jnp.asarray(pixel_params["head"]["bias"]).at[3 * pixel].add(1.0)
    moved = (
        logits(pixel_spec(), {**pixel_params, "head": {**pixel_params["head"], "bias": bias}}, images)
        - before
    )
    expected = np.zeros((16, 16, 3))
    expected[1::size, 2::size, 0] = 1
    np.testing.assert_allclose(moved, np.broadcast_to(expected, moved.shape), atol=1e-4)


def test_masked_equals_compact_and_images_are_independent(images):
    """With widths and MLP sizes that differ by layer and image, and patches pruned and merged."""
    spec = pixel_spec("prune_merge", SHORT)
    params, chosen = drawn_params(spec), structures(pixel_spec("prune_merge", SHORT), 1)
    outcome = masked(spec)(params, images, chosen)
    assert outcome.logits.shape == (6, 16, 16, 3)
    single = compact(spec, params, images[4:5], chosen.image(4))
    assert_close(outcome.logits[4], single.logits[0])
    np.testing.assert_array_equal(outcome.tokens.token_of_patch[4], single.tokens.token_of_patch[0])
    assert (outcome.tokens.token_of_patch < 0).any() and (np.asarray(outcome.tokens.sizes) > 1).any()
    pick = jax.tree.map(lambda leaf: leaf[ORDER], chosen)
    assert_close(masked(spec)(params, images[ORDER], pick).logits, outcome.logits[ORDER])


def _both_logits(model, state):
    """Final and early logits of a state."""
    return model.forward_head(state), model.early_logits(state.tokens, state.width)


def test_inactive_values_do_not_change_pixels(pixel_params, images):
    """Dropped tokens, inactive channels and the head's rows behind a narrow width are set to 1e6."""
    spec, chosen = pixel_spec(), structures(pixel_spec(), 5)

    def last_state(model, images):
        return model.forward_group(model.forward_first_group(images, chosen.groups[0]), chosen.groups[1], 1)

    state = quick_jit(lambda p, x: ViT(spec).apply({"params": p}, x, method=last_state))(pixel_params, images)
    both_logits = quick_jit(lambda p, state: ViT(spec).apply({"params": p}, state, method=_both_logits))
    noise = jnp.arange(state.tokens.features.shape[2]) < state.width[:, None, None]
    noise = jnp.where(noise & state.tokens.valid[:, :, None], state.tokens.features, 1e6)
    poisoned = state._replace(tokens=state.tokens._replace(features=noise))
    jax.tree.map(
        np.testing.assert_array_equal, both_logits(pixel_params, poisoned), both_logits(pixel_params, state)
    )
    narrow, head = state._replace(width=jnp.full(6, 16), mlp_dim=jnp.full(6, 16)), dict(pixel_params["head"])
    head["kernel"] = jnp.asarray(head["kernel"]).at[16:].set(1e6)
    expected = both_logits(pixel_params, narrow)
    jax.tree.map(np.testing.assert_array_equal, both_logits({**pixel_params, "head": head}, narrow), expected)


def test_logits_in_numpy(pixel_params, images):
    """Final logits: norm, leading rows of the head, pixels in order, dropped patches as the nearest patch.

    Early logits: the logarithm of the mean over patch tokens of softmax(mean logits of the token's pixels).
    """
    spec, width = pixel_spec(), 24
    structure = spec.space.uniform(width, 2, (0.5,))

    def run(model, images):
        state = model.forward_group(
            model.forward_first_group(images, structure.groups[0]), structure.groups[1], 1
        )
        after_mlp = model.blocks[-1].apply_mlp(state.tokens, state.width, state.mlp_dim, state.width)
        return state, after_mlp.features, model.forward_head(state)

    state, features, actual = quick_jit(lambda p, x: ViT(spec).apply({"params": p}, x, method=run))(
        pixel_params, images
    )
    norm, head = pixel_params["norm"], pixel_params["head"]

    def pixel_logits(x):
        x = np.asarray(x, np.float64)
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + spec.norm_epsilon)
        x = (x * norm["scale"][:width] + norm["bias"][:width]) @ head["kernel"][:width] + head["bias"]
        return x.reshape(*x.shape[:2], 16, 3)

    exps = np.exp(pixel_logits(state.tokens.features)[:, 1:].mean(2))
    mean = (exps / exps.sum(-1, keepdims=True)).mean(1)
    np.testing.assert_allclose(np.exp(state.early_logits), mean, rtol=1e-3)
    pixels, token_of_patch = pixel_logits(features), np.asarray(state.tokens.token_of_patch)
    positions = [divmod(patch, 4) for patch in range(16)]
    for image in range(6):
        with_token = [patch for patch in range(16) if token_of_patch[image, patch] >= 0]
        assert len(with_token) == 7  # floor(0.5 x 17) tokens, one of them CLS
        for row, column in positions:
            distance = lambda p: (positions[p][0] - row) ** 2 + (positions[p][1] - column) ** 2
            nearest = min(with_token, key=lambda p: (distance(p), p))
            patch_logits = actual[image, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4].reshape(16, 3)
            np.testing.assert_allclose(
                patch_logits, pixels[image, token_of_patch[image, nearest]], rtol=1e-3, atol=1e-3
            )


@pytest.mark.parametrize("name", ["tome", "cait"])
def test_reduced_tokens_are_back_on_the_grid(pixel_params, images, name):
    schedule = Removed((4, 3)) if name == "tome" else KeepRate(0.5, (0, 1), fused=False)
    spec, reduction = pixel_spec(), ScheduledReduction(METHODS[name], schedule)
    run = quick_jit(
        lambda p, x, reduction: forward_reduced(ViT(spec), p, x, spec.largest, reduction).logits,
        static_argnums=2,
    )
    actual = run(pixel_params, images, reduction)
    assert actual.shape == (6, 16, 16, 3) and np.isfinite(actual).all()
    np.testing.assert_allclose(
        run(pixel_params, images[ORDER], reduction), actual[ORDER], rtol=1e-4, atol=1e-4
    )
    assert_close(
        run(pixel_params, images, ScheduledReduction(METHODS[name], Removed(()))),
        logits(spec, pixel_params, images),
    )


@pytest.mark.parametrize("fill", [None, "zero"])
def test_fill_of_dropped_patches(pixel_params, images, fill):
    """Remaining patches do not depend on the fill; dropped ones do."""
    spec, reduction = pixel_spec(), ScheduledReduction(METHODS["prune"], KeepRate(0.5, (0, 1), fused=False))
    model = ViT(spec)
    actual = quick_jit(lambda p, x: forward_segmenter(model, p, x, reduction, fill))(pixel_params, images)
    nearest = quick_jit(lambda p, x: forward_reduced(model, p, x, spec.largest, reduction))(
        pixel_params, images
    )
    is_kept = np.asarray(nearest.tokens.token_of_patch).reshape(-1, 4, 4) >= 0
    is_kept = is_kept.repeat(4, axis=1).repeat(4, axis=2)
    assert_close(np.asarray(actual)[is_kept], np.asarray(nearest.logits)[is_kept])
    assert np.abs(np.asarray(actual)[~is_kept] - np.asarray(nearest.logits)[~is_kept]).max() > 1e-2


def test_macs_by_hand():
    """floor(0.5 x 5) = 2 tokens remain; the head reads 4 patches at width 8, 2 x 2 pixels of 3 classes."""
    space = SearchSpace("two layers", 12, 2, 1, (8, 12), (2,), layers=(1, 1), head_dim=4)
    sizes = dict(image_size=4, patch_size=2, num_classes=3, channels=1)
    spec = ModelSpec(space, **sizes, pixels=True)
    actual, plain = (
        macs(network, space.uniform(8, 2, (0.5,)), selector=7)
        for network in (spec, ModelSpec(space, **sizes, full_last_layer=True))
    )
    assert actual.classifier == 4 * 8 * (2 * 2 * 3) and plain.classifier == 8 * 3
    assert actual._replace(classifier=0) == plain._replace(classifier=0)
    assert actual.total == 4 * 4 * 8 + 2 * (5 * 8 * 12 + 2 * 5 * 5 * 4 + 5 * 4 * 8) + (5 + 2) * 2 * 8 * 16 + (
        5 * 8 * 8 + 7 + 4 * 8 * 12
    )
    num_params = [
        count_parameters(network, space.uniform(8, 2)) for network in (spec, ModelSpec(space, **sizes))
    ]
    assert num_params[0] - num_params[1] == 9 * (12 - 3)


@pytest.mark.parametrize("what", ["structure", "reduction"])
def test_every_product_is_counted(what, pixel_params):
    """Not in MACs: attention from CLS in each layer, and early logits after each group of a structure.

    Early logits have one pixel per token, the mean.
    """
    spec = pixel_spec()
    image = jax.ShapeDtypeStruct((1, 16, 16, 3), jnp.float32)
    if what == "structure":
        structure = structures(spec, 2).image(1)
        program = lambda p, x: ViT(spec).apply({"params": p}, x, structure)
        counts, cost = token_counts(spec, structure), macs(spec, structure)
        layers_and_groups = zip(spec.space.first_layers, structure.groups)
        per_class = sum(counts.mlp[layer] * group.widths[-1] for layer, group in layers_and_groups)
        early_logits = per_class * spec.num_classes
    else:
        reduction = ScheduledReduction(METHODS["prune"], KeepRate(0.5, (0, 1), fused=False))
        program = lambda p, x: forward_reduced(ViT(spec), p, x, spec.largest, reduction).logits
        counts, cost, early_logits = reduction.counts(spec), scheduled_macs(spec, spec.largest, reduction), 0
    rows = spec.space.attention_width * sum(counts.attention)
    assert product_flops(jax.make_jaxpr(program)(pixel_params, image).jaxpr) == 2 * (
        cost.total + rows + early_logits
    )


def test_wrong_combinations_with_pixels_are_refused():
    with pytest.raises(UserError, match="pixels=True .* classify patches, distilled=True class tokens only"):
        make_spec(pixels=True, distilled=True)
    spec = make_spec(pixels=True)
    with pytest.raises(UserError, match="with pixels=True use a token method"):
        PredictorViT(spec, PredictorConfig(True, (1,), (0.5,))).init(
            jax.random.key(0), jnp.zeros((1, 16, 16, 3))
        )


def test_masks_belong_to_their_images():
    source = load_digits_source(DigitsConfig(test_images=60, validation_images=40))
    masks = DigitMasks(source)
    scenes, plain = masks.split("test"), source.split("test")
    np.testing.assert_array_equal(scenes.images, plain.images)
    unit = source.to_unit(scenes.images)[..., 0]
    for image, mask, label in zip(unit, scenes.labels, plain.labels):
        assert set(np.unique(mask)) == {0, 1 + label}
        # The digit has ink wherever its mask is.
        assert image[mask > 0].min() > 0.25 and 10 < (mask > 0).sum() < 200
    images, labels = masks.sample(source.tables, jax.random.key(0), 8)
    expected, _ = source.sample(source.tables, jax.random.key(0), 8)
    np.testing.assert_array_equal(images, expected)
    assert labels.shape == images.shape[:3]


def test_miou_by_hand():
    truth, predicted = np.array([[0, 0, 1], [1, 2, 2]]), np.array([[0, 1, 1], [1, 2, 0]])
    result = overlap_from_confusion(confusion_matrix(truth, predicted, 4))
    np.testing.assert_allclose(result.each, [1 / 3, 2 / 3, 1 / 2, np.nan])
    assert result.miou == pytest.approx(0.5) and result.accuracy == pytest.approx(4 / 6)
