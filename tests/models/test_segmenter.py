"""A class for every pixel from reduced tokens, and the embedded task that it is measured on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import PAIR, SHORT, compact, drawn_params, logits, make_spec, masked, quick_jit, structures
from spec.test_macs import product_flops

from prance_jax.baselines.predictor_config import PredictorConfig
from prance_jax.baselines.predictor_vit import PredictorViT
from prance_jax.config.other_tasks import PiTConfig, SegmentConfig
from prance_jax.core.errors import UserError
from prance_jax.data.digits.digits import load_digits_source
from prance_jax.data.digits.masks import DigitMasks
from prance_jax.data.digits.render import DigitsConfig
from prance_jax.evaluation.miou import confusion_matrix, from_confusion
from prance_jax.models.reduction import METHODS, ScheduledReduction, forward_reduced, scheduled_macs
from prance_jax.models.segmenter import forward_segmenter
from prance_jax.models.vit import ViT
from prance_jax.spec.macs import macs, parameters, token_counts
from prance_jax.spec.model_spec import ModelSpec
from prance_jax.spec.search_space import SearchSpace
from prance_jax.tokens.schedules import KeepRate, Removed

ORDER = np.array([3, 0, 5, 1, 4, 2])


def pixel_spec(mode="prune", space=PAIR):
    return make_spec(mode, space=space, pixels=True, num_classes=3)


@pytest.fixture(scope="module")
def drawn():
    """Parameters of the pixel network, the same for every mode."""
    return drawn_params(pixel_spec())


def close(found, wanted):
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5 * float(np.abs(np.asarray(wanted)).max()))


def test_pixels_come_from_their_own_patch(drawn, images):
    """The bias of one pixel of the patch moves that pixel of every patch alone."""
    before = logits(pixel_spec(), drawn, images)
    assert before.shape == (6, 16, 16, 3)
    size, pixel = 4, 4 * 1 + 2  # row 1, column 2 of each patch, class 0
    bias = jnp.asarray(drawn["head"]["bias"]).at[3 * pixel].add(1.0)
    moved = logits(pixel_spec(), {**drawn, "head": {**drawn["head"], "bias": bias}}, images) - before
    wanted = np.zeros((16, 16, 3))
    wanted[1::size, 2::size, 0] = 1
    np.testing.assert_allclose(moved, np.broadcast_to(wanted, moved.shape), atol=1e-4)


def test_masked_equals_compact_and_no_image_sees_its_batch(images):
    """Per image: widths that differ by layer, hidden units, patches pruned and merged; narrow widths reach the head."""
    spec = pixel_spec("prune_merge", SHORT)
    params, chosen = drawn_params(spec), structures(pixel_spec("prune_merge", SHORT), 1)
    outcome = masked(spec)(params, images, chosen)
    assert outcome.logits.shape == (6, 16, 16, 3)
    alone = compact(spec, params, images[4:5], chosen.image(4))
    close(outcome.logits[4], alone.logits[0])
    np.testing.assert_array_equal(outcome.tokens.token_of_patch[4], alone.tokens.token_of_patch[0])
    assert (outcome.tokens.token_of_patch < 0).any() and (np.asarray(outcome.tokens.sizes) > 1).any()
    pick = jax.tree.map(lambda leaf: leaf[ORDER], chosen)
    close(masked(spec)(params, images[ORDER], pick).logits, outcome.logits[ORDER])


def _ends(model, state):
    return model.forward_head(state), model.early_logits(state.tokens, state.width)


def test_what_is_inactive_does_not_reach_the_pixels(drawn, images):
    """Dropped tokens, inactive channels, and the rows of the head behind a narrow width may hold 1e6."""
    spec, chosen = pixel_spec(), structures(pixel_spec(), 5)

    def last(model, images):
        return model.forward_group(model.forward_first_group(images, chosen.groups[0]), chosen.groups[1], 1)

    state = quick_jit(lambda p, x: ViT(spec).apply({"params": p}, x, method=last))(drawn, images)
    ends = quick_jit(lambda p, state: ViT(spec).apply({"params": p}, state, method=_ends))
    noise = jnp.arange(state.tokens.features.shape[2]) < state.width[:, None, None]
    noise = jnp.where(noise & state.tokens.valid[:, :, None], state.tokens.features, 1e6)
    poisoned = state._replace(tokens=state.tokens._replace(features=noise))
    jax.tree.map(np.testing.assert_array_equal, ends(drawn, poisoned), ends(drawn, state))
    narrow, beyond = state._replace(width=jnp.full(6, 16), mlp_dim=jnp.full(6, 16)), dict(drawn["head"])
    beyond["kernel"] = jnp.asarray(beyond["kernel"]).at[16:].set(1e6)
    wanted = ends(drawn, narrow)
    jax.tree.map(np.testing.assert_array_equal, ends({**drawn, "head": beyond}, narrow), wanted)


def test_what_is_said_of_tokens_in_numpy(drawn, images):
    """Norm, the leading rows of the head, every pixel in its place, a dropped patch as its nearest one; the glance is the mean
    over patch tokens of the softmax of each one's pixels' mean logits, as a logarithm."""
    spec, width = pixel_spec(), 24
    own = spec.space.uniform(width, 2, (0.5,))

    def run(model, images):
        state = model.forward_group(model.forward_first_group(images, own.groups[0]), own.groups[1], 1)
        fed = model.blocks[-1].apply_mlp(state.tokens, state.width, state.mlp_dim, state.width)
        return state, fed.features, model.forward_head(state)

    state, tokens_after, found = quick_jit(lambda p, x: ViT(spec).apply({"params": p}, x, method=run))(
        drawn, images
    )
    norm, head = drawn["norm"], drawn["head"]

    def said(x):
        x = np.asarray(x, np.float64)
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + spec.norm_epsilon)
        x = (x * norm["scale"][:width] + norm["bias"][:width]) @ head["kernel"][:width] + head["bias"]
        return x.reshape(*x.shape[:2], 16, 3)

    chances = np.exp(said(state.tokens.features)[:, 1:].mean(2))
    mean = (chances / chances.sum(-1, keepdims=True)).mean(1)
    np.testing.assert_allclose(np.exp(state.early_logits), mean, rtol=1e-3)
    pixels, token_of_patch = said(tokens_after), np.asarray(state.tokens.token_of_patch)
    place = [divmod(patch, 4) for patch in range(16)]
    for image in range(6):
        carried = [patch for patch in range(16) if token_of_patch[image, patch] >= 0]
        assert len(carried) == 7  # floor(0.5 x 17) tokens, one of them CLS
        for row, column in place:
            near = min(carried, key=lambda p: ((place[p][0] - row) ** 2 + (place[p][1] - column) ** 2, p))
            drawn_here = found[image, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4].reshape(16, 3)
            np.testing.assert_allclose(
                drawn_here, pixels[image, token_of_patch[image, near]], rtol=1e-3, atol=1e-3
            )


@pytest.mark.parametrize("name", ["tome", "cait"])
def test_reduced_tokens_are_back_on_the_grid(drawn, images, name):
    schedule = Removed((4, 3)) if name == "tome" else KeepRate(0.5, (0, 1), fused=False)
    spec, reduction = pixel_spec(), ScheduledReduction(METHODS[name], schedule)
    run = quick_jit(
        lambda p, x, own: forward_reduced(ViT(spec), p, x, spec.largest, own).logits, static_argnums=2
    )
    found = run(drawn, images, reduction)
    assert found.shape == (6, 16, 16, 3) and np.isfinite(found).all()
    np.testing.assert_allclose(run(drawn, images[ORDER], reduction), found[ORDER], rtol=1e-4, atol=1e-4)
    close(run(drawn, images, ScheduledReduction(METHODS[name], Removed(()))), logits(spec, drawn, images))


@pytest.mark.parametrize("fill", [None, "zero"])
def test_what_stands_for_dropped_patches(drawn, images, fill):
    """Patches that are left look the same whatever stands for the others."""
    spec, reduction = pixel_spec(), ScheduledReduction(METHODS["prune"], KeepRate(0.5, (0, 1), fused=False))
    model = ViT(spec)
    found = quick_jit(lambda p, x: forward_segmenter(model, p, x, reduction, fill))(drawn, images)
    wanted = quick_jit(lambda p, x: forward_reduced(model, p, x, spec.largest, reduction))(drawn, images)
    tokens_after = np.asarray(wanted.tokens.token_of_patch).reshape(-1, 4, 4) >= 0
    tokens_after = tokens_after.repeat(4, axis=1).repeat(4, axis=2)
    close(np.asarray(found)[tokens_after], np.asarray(wanted.logits)[tokens_after])
    assert np.abs(np.asarray(found)[~tokens_after] - np.asarray(wanted.logits)[~tokens_after]).max() > 1e-2


def test_costs_by_hand():
    """Pruning to floor(0.5 x 5) = 2 tokens; the head reads all 4 patches at width 8: 2 x 2 pixels of 3 classes."""
    space = SearchSpace("two layers", 12, 2, 1, (8, 12), (2,), layers=(1, 1), head_dim=4)
    sizes = dict(image_size=4, patch_size=2, num_classes=3, channels=1)
    spec = ModelSpec(space, **sizes, pixels=True)
    found, plain = (
        macs(own, space.uniform(8, 2, (0.5,)), selector=7) for own in (spec, ModelSpec(space, **sizes))
    )
    assert found.classifier == 4 * 8 * (2 * 2 * 3) and plain.classifier == 8 * 3
    assert found._replace(classifier=0) == plain._replace(classifier=0)
    assert found.total == 4 * 4 * 8 + 2 * (5 * 8 * 12 + 2 * 5 * 5 * 4 + 5 * 4 * 8) + (5 + 2) * 2 * 8 * 16 + (
        5 * 8 * 8 + 7 + 4 * 8 * 12
    )
    heads = [parameters(own, space.uniform(8, 2)) for own in (spec, ModelSpec(space, **sizes))]
    assert heads[0] - heads[1] == 9 * (12 - 3)


@pytest.mark.parametrize("what", ["structure", "reduction"])
def test_every_product_is_counted(what, drawn):
    """Beside a row of attention from CLS in each layer and, under a structure, a glance of the mean pixel of every token
    after each group."""
    spec = pixel_spec()
    image = jax.ShapeDtypeStruct((1, 16, 16, 3), jnp.float32)
    if what == "structure":
        own = structures(spec, 2).image(1)
        program = lambda p, x: ViT(spec).apply({"params": p}, x, own)
        counts, cost = token_counts(spec, own), macs(spec, own)
        ends = [
            counts.mlp[layer] * group.widths[-1] for layer, group in zip(spec.space.first_layers, own.groups)
        ]
        seen = sum(ends) * spec.num_classes
    else:
        own = ScheduledReduction(METHODS["prune"], KeepRate(0.5, (0, 1), fused=False))
        program = lambda p, x: forward_reduced(ViT(spec), p, x, spec.largest, own).logits
        counts, cost, seen = own.counts(spec), scheduled_macs(spec, spec.largest, own), 0
    rows = spec.space.attention_width * sum(counts.attention)
    assert product_flops(jax.make_jaxpr(program)(drawn, image).jaxpr) == 2 * (cost.total + rows + seen)


def test_what_pixels_cannot_be_combined_with():
    with pytest.raises(UserError, match="a distilled network has classifiers of its class tokens"):
        make_spec(pixels=True, distilled=True)
    spec = make_spec(pixels=True)
    with pytest.raises(UserError, match="with pixels=True use a token method"):
        PredictorViT(spec, PredictorConfig(True, (1,), (0.5,))).init(
            jax.random.key(0), jnp.zeros((1, 16, 16, 3))
        )


@pytest.mark.parametrize("share", (0.0, 1.5))
@pytest.mark.parametrize("config", (SegmentConfig, PiTConfig))
def test_shares_outside_of_what_can_be_spent_are_refused(config, share):
    with pytest.raises(UserError, match=f"share={share} must be a share of dense MACs"):
        config(share=share)


def test_masks_belong_to_their_images():
    source = load_digits_source(DigitsConfig(test_images=60, validation_images=40))
    masks = DigitMasks(source)
    scenes, plain = masks.split("test"), source.split("test")
    np.testing.assert_array_equal(scenes.images, plain.images)
    unit = source.to_unit(scenes.images)[..., 0]
    for image, mask, label in zip(unit, scenes.labels, plain.labels):
        assert set(np.unique(mask)) == {0, 1 + label}
        assert (
            image[mask > 0].min() > 0.25 and 10 < (mask > 0).sum() < 200
        )  # the digit has ink wherever its mask is
    drawn, labels = masks.sample(source.tables, jax.random.key(0), 8)
    again, _ = source.sample(source.tables, jax.random.key(0), 8)
    np.testing.assert_array_equal(drawn, again)
    assert labels.shape == drawn.shape[:3]


def test_miou_by_hand():
    truth, found = np.array([[0, 0, 1], [1, 2, 2]]), np.array([[0, 1, 1], [1, 2, 0]])
    result = from_confusion(confusion_matrix(truth, found, 4))
    np.testing.assert_allclose(result.each, [1 / 3, 2 / 3, 1 / 2, np.nan])
    assert result.miou == pytest.approx(0.5) and result.accuracy == pytest.approx(4 / 6)
