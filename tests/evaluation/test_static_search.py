"""The search for a static structure: costs, losses, budgets, and the optimum of a space that is small enough to list."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import KEEP, SHORT, drawn_params, keep_choices, make_spec, masked, quick_jit

from prance_jax.core.errors import UserError
from prance_jax.data.source import Split
from prance_jax.evaluation import static_search
from prance_jax.evaluation.static_candidates import CandidateSpace
from prance_jax.evaluation.static_search import search_static_structure, search_static_structures
from prance_jax.models.vit import ViT
from prance_jax.selector.actions import ActionSpace
from prance_jax.spec.macs import macs
from prance_jax.spec.search_space import SearchSpace
from prance_jax.spec.structure import Structure

# 192 structures with three keep rates. In a last group of one layer, the keep rate would not change the logits.
TINY = SearchSpace("tiny test", 32, 3, 2, (16, 28), (1, 3), layers=(1, 2), head_dim=8)
IMAGES = 20


def space_of(spec, keep=None):
    return CandidateSpace(spec, ActionSpace(spec.space, spec.rates, keep or keep_choices(spec)))


def validation(spec):
    rng = np.random.default_rng(3)
    label_shape = (IMAGES, 16, 16) if spec.pixels else IMAGES
    images = rng.standard_normal((IMAGES, 16, 16, 3)).astype(np.float32)
    return Split(images, rng.integers(5, size=label_shape).astype(np.int32), {})


def search(spec, shares, seed=0, candidates=18, keep=None):
    """Structures and losses at budgets that are shares of the dense network's MACs."""
    actions = space_of(spec, keep).actions
    budgets = tuple(share * macs(spec, spec.largest).total for share in shares)
    settings = {"candidates": candidates, "images": IMAGES, "seed": seed}
    return search_static_structures(spec, actions, drawn_params(spec), validation(spec), budgets, **settings)


def numpy_losses(logits, labels):
    """Cross-entropy of every label."""
    logits = np.asarray(logits, np.float64)
    log_sum = np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1)) + logits.max(-1)
    return log_sum - np.take_along_axis(logits, labels[..., None], -1)[..., 0]


def loss_of(spec, structure):
    """Loss of a static structure on all images, by compact execution."""
    split = validation(spec)
    forward = quick_jit(lambda params, images: ViT(spec).apply({"params": params}, images, structure))
    return numpy_losses(forward(drawn_params(spec), split.images), split.labels).mean()


@pytest.mark.parametrize("mode", ["prune", "merge", "prune_merge", "tome"])
def test_costs_are_those_of_the_static_structures(mode):
    spec = make_spec(mode)
    space = space_of(spec)
    genes = np.concatenate([[space.smallest, space.largest], space.sample(np.random.default_rng(0), 60)])
    genes = np.concatenate([genes, space.mutate(np.random.default_rng(1), genes, 20)])
    structures = [space.structure(row) for row in genes]
    exact = [macs(spec, structure).total for structure in structures]
    assert all(isinstance(total, int) for total in exact)
    np.testing.assert_allclose(space.costs(genes), exact, rtol=1e-6)
    decoded = space.decode(jnp.asarray(genes, jnp.int32))
    for index, structure in enumerate(structures):
        np.testing.assert_allclose(
            jax.tree.leaves(decoded.image(index)), jax.tree.leaves(structure), rtol=1e-6
        )
        spec.space.check(structure, spec.rates)
    # No gene is without effect, in groups of one layer either.
    assert len(set(structures)) == len(np.unique(genes, axis=0))
    assert exact[0] == min(exact) and structures[1] == spec.largest


def test_samples_cover_small_and_large_choices():
    space = space_of(make_spec())
    genes = space.sample(np.random.default_rng(0), 20_000)
    assert (genes.min(0) == 0).all() and (genes.max(0) == space.sizes - 1).all()
    channels, keep = (
        (genes[:, columns] / np.maximum(space.sizes - 1, 1)[columns]).mean(1)
        for columns in (~space.is_keep_rate, space.is_keep_rate)
    )
    # A candidate of few channels can keep many tokens, and the other way round.
    assert (channels[keep > 0.8] < 0.3).any() and (channels[keep < 0.2] > 0.6).any()
    assert (channels < 0.1).any() and (channels > 0.7).any()


@pytest.mark.parametrize("changes", [{}, {"token_optimization": "merge"}, {"pixels": True}], ids=str)
def test_results_fit_and_losses_are_of_all_images(changes, monkeypatch):
    monkeypatch.setattr(static_search, "_FIRST_IMAGES", 8)
    mode = changes.get("token_optimization", "prune")
    spec = make_spec(mode, space=SHORT, pixels=changes.get("pixels", False))
    shares = (0.4, 0.6)
    full = macs(spec, spec.largest).total
    for share, (structure, loss) in zip(shares, search(spec, shares)):
        total = macs(spec, spec.space.check(structure, spec.rates)).total
        assert isinstance(total, int) and 0.9 * share * full <= total <= share * full
        assert loss == pytest.approx(loss_of(spec, structure), rel=1e-4)


def test_finds_the_optimum():
    """Lists all structures of a tiny space that fit."""
    spec, keep = make_spec(space=TINY), ((0.3, 0.55, 0.8),)
    space, split, share = space_of(spec, keep), validation(spec), 0.55
    genes = np.array(list(itertools.product(*map(range, space.sizes))))
    limit = share * macs(spec, spec.largest).total
    totals = [macs(spec, space.structure(row)).total for row in genes]
    genes = genes[[0.9 * limit <= total <= limit for total in totals]]
    assert len(genes) > 12
    pairs = jnp.asarray(np.repeat(genes, IMAGES, axis=0), jnp.int32)
    images = np.tile(split.images, (len(genes), 1, 1, 1))
    logits = masked(spec)(drawn_params(spec), images, space.decode(pairs)).logits
    losses = numpy_losses(logits, np.tile(split.labels, len(genes))).reshape(len(genes), IMAGES).mean(1)
    ((structure, loss),) = search(spec, (share,), candidates=len(genes), keep=keep)
    order = losses.argsort()
    assert losses[order[1]] > losses[order[0]] * 1.0001, "no tie"
    assert structure == space.structure(genes[order[0]])
    assert loss == pytest.approx(losses.min(), rel=1e-5)


def test_impossible_budget_gives_the_smallest_structure():
    spec = make_spec(space=SHORT)
    (structure, loss), (possible, _) = search(spec, (0.01, 0.5))
    assert structure == spec.space.smallest((KEEP[0],))
    assert loss == pytest.approx(loss_of(spec, structure), rel=1e-4)
    assert macs(spec, possible).total > macs(spec, structure).total


def test_budget_of_the_largest_structure_is_not_missed_by_rounding():
    spec = make_spec(space=SHORT)
    space = space_of(spec)
    budget_search = static_search._BudgetSearch(space, macs(spec, spec.largest).total, 0, 16)
    genes = np.stack([space.largest, space.smallest])
    np.testing.assert_array_equal(budget_search.first_generation(genes, space.costs(genes), 5), genes[:1])
    less = static_search._BudgetSearch(space, macs(spec, spec.largest).total - 1, 0, 16)
    assert not len(less._take_fitting(genes, space.costs(genes), 5))


def test_budget_that_no_random_candidate_fits():
    """Mutations of the nearest candidates approach it."""
    spec = make_spec()
    space = space_of(spec)
    limit = 0.5 * macs(spec, spec.largest).total
    pool = np.stack([space.smallest, space.largest])
    genes = static_search._BudgetSearch(space, limit, 0, 16).first_generation(pool, space.costs(pool), 5)
    assert len(genes) == 5
    assert all(0.9 * limit <= macs(spec, space.structure(row)).total <= limit for row in genes)


def test_equal_seeds_give_equal_results():
    """The result of a budget does not depend on the other budgets."""
    spec = make_spec(space=SHORT)
    first, again = search(spec, (0.4, 0.6)), search(spec, (0.4, 0.6))
    assert first == again
    assert all(isinstance(structure, Structure) and structure.static for structure, _ in first)
    structure, loss = search_static_structure(
        spec,
        space_of(spec).actions,
        drawn_params(spec),
        validation(spec),
        0.6 * macs(spec, spec.largest).total,
        candidates=18,
        images=IMAGES,
        seed=0,
    )
    assert structure == first[1][0] and loss == pytest.approx(first[1][1], rel=1e-6)


def test_continuous_actions_are_refused():
    spec = make_spec(space=SHORT)
    with pytest.raises(UserError, match="give keep_choices"):
        search_static_structures(
            spec, ActionSpace(SHORT, 1), None, validation(spec), (1.0,), candidates=1, images=1, seed=0
        )
