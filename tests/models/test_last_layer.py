"""The last layer computes what the head reads: the same answers and gradients, and the counted products."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import compact, drawn_params, make_spec, masked, quick_jit, structures
from spec.test_macs import product_flops

from prance_jax.adaptive.choose_buckets import choose_buckets
from prance_jax.adaptive.executor import serve_adaptive
from prance_jax.baselines.diffrate_counts import LearnedCounts
from prance_jax.baselines.predictor_config import PredictorConfig
from prance_jax.baselines.predictor_vit import PredictorViT
from prance_jax.core.errors import UserError
from prance_jax.models.forward import forward_exit, forward_first_group, forward_group
from prance_jax.models.reduction import METHODS, ScheduledReduction, forward_reduced, scheduled_macs
from prance_jax.models.token_steps import LayerReduction
from prance_jax.models.vit import ViT
from prance_jax.selector.policies import GivenPolicy
from prance_jax.spec.cascade import CascadeSpec, Look
from prance_jax.spec.macs import exit_macs, macs, prefix_macs
from prance_jax.spec.search_space import SearchSpace
from prance_jax.spec.token_counts import tokens_after_layers
from prance_jax.tokens.schedules import Removed

# The last layer is no decision point.
SPACE = SearchSpace("two groups", 32, 3, 2, (16, 24, 28), (1, 2, 3), layers=(1, 2), head_dim=8)
PREDICTOR = PredictorConfig(True, (1,), (0.6,))


def pair(mode="prune", **changes):
    """The same network with the usual and with a full last layer."""
    spec = make_spec(mode, space=SPACE, **changes)
    return spec, dataclasses.replace(spec, full_last_layer=True)


def close(actual, expected, tolerance=1e-6):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=tolerance * float(np.abs(b).max())),
        actual,
        expected,
    )


def products(program, *arguments):
    """Multiply-accumulates of a program."""
    return product_flops(jax.make_jaxpr(program)(*arguments).jaxpr) // 2


def assert_same(specs, run, params):
    """Compares logits and gradients of `run(spec, params)` for both networks."""

    def score(spec, params):
        logits = run(spec, params)
        return jnp.sum(jnp.sin(logits)), logits

    usual, full = (
        quick_jit(jax.grad(functools.partial(score, spec), has_aux=True))(params) for spec in specs
    )
    close(usual[1], full[1])
    close(usual[0], full[0], 1e-5)


@pytest.mark.parametrize(
    "mode, changes",
    [
        ("prune_merge", {}),
        ("mctf", {"distilled": True}),
        ("merge", {"enter_at_widest": True, "scale_norm": True, "remat": True}),
    ],
)
@pytest.mark.parametrize("per_image", [False, True])
def test_logits_and_gradients_under_a_structure(mode, changes, per_image, images):
    specs = pair(mode, **changes)
    structure = structures(specs[0], 1) if per_image else structures(specs[0], 1).image(0)

    def run(spec, params):
        return ViT(spec).apply({"params": params}, images, structure)

    assert_same(specs, run, drawn_params(specs[0]))


@pytest.mark.parametrize("distilled", [False, True])
@pytest.mark.parametrize("method", ["tome", "evit", "mctf", "cait"])
def test_logits_and_gradients_under_a_schedule(method, distilled, images):
    """Although only the full network removes tokens in the last layer, too; both do one step ahead."""
    specs, reduction = pair(distilled=distilled), ScheduledReduction(METHODS[method], Removed((4, 3, 3)))

    def run(spec, params):
        return forward_reduced(ViT(spec), params, images, spec.largest, reduction).logits

    assert_same(specs, run, drawn_params(specs[0]))
    usual, full = (reduction.tokens_after(spec) for spec in specs)
    assert full[1] > full[2] and usual[:2] == full[:2] and usual[2] == full[1 if method != "mctf" else 2]


@pytest.mark.parametrize("method", METHODS)
def test_macs_saved_under_a_schedule(method, images):
    """Matching is not counted, but both networks match alike; one step ahead also in the last layer."""
    schedule = Removed((4, 3, 3) if method == "mctf" else (4, 3))
    specs, reduction = pair(), ScheduledReduction(METHODS[method], schedule)
    params, of_program, counted = drawn_params(specs[0]), [], []
    for spec in specs:
        run = lambda p, x, spec=spec: forward_reduced(ViT(spec), p, x, spec.largest, reduction).logits
        of_program.append(products(run, params, images[:1]))
        counted.append(scheduled_macs(spec, spec.largest, reduction).total)
    assert of_program[1] - of_program[0] == counted[1] - counted[0] > 0


def test_a_schedule_per_image_ends_before_the_last_layer(images):
    spec, params = pair()[0], drawn_params(pair()[0])
    run = quick_jit(
        lambda *num_keep: ViT(spec).apply(
            {"params": params},
            images,
            spec.largest,
            LayerReduction(METHODS["tome"], num_keep),
            method="forward_reduced",
        )
    )
    output = run(*jnp.asarray([[15, 13, 12, 17, 15, 13], [13, 11, 9, 17, 9, 13]]), jnp.full(6, 2))
    assert output.tokens.features.shape == (6, 1, 28) and output.tokens.valid is None
    num_tokens = [len(set(row)) + 1 for row in output.tokens.token_of_patch.tolist()]
    assert num_tokens == [13, 11, 9, 17, 9, 13]


@pytest.mark.parametrize("mode", ["prune", "prune_merge", "mctf"])
@pytest.mark.parametrize("full", [False, True])
def test_every_product_of_a_structure_is_counted(mode, full, images):
    """Traced but not counted: attention from CLS in each layer, early logits after each group."""
    spec = pair(mode, distilled=mode == "prune")[full]
    params, sampled = drawn_params(spec), structures(spec, 3)
    for index in range(3):
        structure = sampled.image(index)
        tokens_after, groups = tokens_after_layers(spec, structure), structure.groups
        decision_inputs = SPACE.attention_width * sum((spec.tokens, *tokens_after[:-1]))
        decision_inputs += spec.class_tokens * 5 * sum(group.widths[-1] for group in groups)
        run = lambda p, x: ViT(spec).apply({"params": p}, x, structure)
        total = macs(spec, structure).total
        assert products(run, params, images[:1]) == total + decision_inputs

        def exit_at_the_end(params, images):
            state = forward_first_group(ViT(spec), params, images, groups[0])
            state = forward_group(ViT(spec), params, state, groups[1], 1)
            return forward_exit(ViT(spec), params, state, 1)

        parts = prefix_macs(spec, groups) + exit_macs(spec, groups)
        assert products(exit_at_the_end, params, images[:1]) == parts + decision_inputs
        assert parts == total if not full else parts < total


def test_token_predictors(images):
    """Evaluation computes CLS alone; the teacher has all patches."""
    usual, full = (PredictorViT(spec, PREDICTOR) for spec in pair())
    params = quick_jit(usual.init)(jax.random.key(0), images[:1])["params"]
    run = lambda model: quick_jit(lambda p: model.apply({"params": p}, images))(params)
    assert run(usual).tokens_after == run(full).tokens_after == (17, 12, 12)
    assert run(usual).tokens.features.shape[1] == 1
    close(run(usual).logits, run(full).logits)
    of_program = [
        products(lambda p, x, model=model: model.apply({"params": p}, x).logits, params, images[:1])
        for model in (usual, full)
    ]
    counted = [PREDICTOR.macs(model.spec).total for model in (usual, full)]
    assert of_program[1] - of_program[0] == counted[1] - counted[0] > 0
    teach = lambda model: quick_jit(lambda p: model.apply({"params": p}, images, method="features"))(params)
    close(teach(usual), teach(full))


def test_learned_counts(images):
    specs = pair()
    params, search = drawn_params(specs[0]), LearnedCounts(specs[0])
    logits = -jnp.square(search.count_choices - jnp.asarray([[13.0], [9.0]]))[None]
    run = lambda spec: quick_jit(
        lambda p: LearnedCounts(spec).forward(ViT(spec), p, images, search.counts(logits))
    )(params)
    close(run(specs[0]), run(specs[1]))


def test_served_is_masked(images):
    spec = pair("prune_merge")[0]
    params, sampled, first = drawn_params(spec), structures(spec, 1), SPACE.first_group("24x2")
    decisions = sampled._replace(groups=(first, *sampled.groups[1:]))
    buckets = choose_buckets(spec, decisions, 2)
    served = quick_jit(
        lambda p: serve_adaptive(buckets, GivenPolicy(first), p, decisions, images, jax.random.key(0), 3)
    )(params)
    whole = jax.tree.map(lambda size: jnp.broadcast_to(jnp.asarray(size), 6), decisions)
    expected = masked(spec)(params, images, whole)
    close(served.logits, expected.logits, 1e-5)
    np.testing.assert_array_equal(served.tokens_of_patches[-1], expected.tokens.token_of_patch)
    alone = compact(spec, params, images[2:3], decisions.image(2))
    close(served.logits[2], alone.logits[0], 1e-5)
    np.testing.assert_array_equal(served.tokens_of_patches[-1][2], alone.tokens.token_of_patch[0])


def test_an_earlier_look_of_a_cascade_needs_all_tokens():
    usual, full = pair()
    CascadeSpec((Look(full), Look(usual)))
    with pytest.raises(UserError, match="look 0 needs full_last_layer=True"):
        CascadeSpec((Look(usual), Look(usual)))
