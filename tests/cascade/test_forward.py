"""Masked, compact and grouped execution agree, over random trees, sizes, exits, keep rates and decisions."""

import collections
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cascade.examples import (
    BATCH,
    SHORT,
    drawn_images,
    drawn_params,
    given,
    random_actions,
    random_cascade,
    stop_by_hand,
    two_looks,
    vit,
)
from small import quick_jit

from prance_jax.cascade.executor import serve_cascade
from prance_jax.cascade.forward import forward_cascade, forward_path, forward_tree
from prance_jax.spec.cascade import CascadeSpec, Look
from prance_jax.spec.search_space import SearchSpace

NARROW = SearchSpace("narrow test", 12, 2, 1, (6, 12), (1, 2), layers=(1, 1), head_dim=6)
THREE = CascadeSpec(
    (
        Look(vit("tome", space=SHORT, image_size=4), "all"),
        *two_looks("tome", "all_but_norms", space=SHORT).looks,
    )
)
# From the first look to either of the others; from the second one cells get the mean of the attention to their patches.
REFINED = CascadeSpec(
    (
        Look(vit("prune_merge", space=SHORT, image_size=8), "all"),
        Look(vit("prune_merge", space=SHORT, refined_cells=2), "all_but_norms"),
        Look(vit("prune_merge", space=SHORT, refined_cells=3)),
    )
)
CASES = {
    "prune": random_cascade(two_looks("prune", first={"space": NARROW}), 1),
    "merge": random_cascade(two_looks("merge", "all", distilled=True, weighted_merge=True, space=SHORT), 1),
    "prune_merge": random_cascade(two_looks("prune_merge", "all_but_norms", space=SHORT), 2),
    "tome": random_cascade(THREE, 337, 6),
    "refined": random_cascade(REFINED, 95, 6),
}


def close(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * float(np.abs(expected).max()))


@functools.lru_cache(maxsize=None)
def masked(cascade):
    """(params, images, actions, key) -> output, and the nodes and features at every decision.

    Where an image is at no exit, its action is random.
    """
    exits = sorted({(step.look, step.last_group) for step in cascade.steps})

    def run(params, images, actions, key):
        seen = []

        def decide(node, features):
            ends = [
                n
                for n, s in enumerate(cascade.steps, 1)
                if seen and (s.look, s.last_group) == exits[len(seen) - 1]
            ]
            is_here = jnp.isin(node, jnp.asarray(ends or [0]))
            seen.append((node, features, is_here))
            noise = jax.random.randint(jax.random.fold_in(key, len(seen)), node.shape, 0, cascade.num_actions)
            return jnp.where(is_here, given(actions)(node, features), noise)

        output = forward_cascade(cascade, params, images, decide)
        return output._replace(answers=[(a.logits, a.reached) for a in output.answers]), seen

    return quick_jit(run)


@functools.lru_cache(maxsize=None)
def served(cascade, chunk):
    """(params, images, actions) -> output of the executor."""
    return quick_jit(
        lambda params, images, actions: serve_cascade(cascade, params, images, given(actions), chunk)
    )


CHUNKS = {"prune": 3, "merge": 1, "prune_merge": BATCH, "tome": 4, "refined": 2}


@functools.lru_cache(maxsize=None)
def tabulated(name):
    """A cascade, its parameters, images, and what every node gives for them."""
    cascade = CASES[name]
    params, images = drawn_params(cascade.spec), drawn_images(cascade.spec)
    run = quick_jit(lambda params, images: forward_tree(cascade, params, images))
    return cascade, params, images, jax.device_get(run(params, images))


@pytest.fixture(params=CASES)
def case(request):
    return tabulated(request.param)


@pytest.mark.parametrize("seed", [0, 1])
def test_masked_is_compact(case, seed):
    cascade, params, images, (logits, features) = case
    actions, rows = random_actions(cascade, seed), np.arange(len(images))
    output, seen = jax.device_get(masked(cascade)(params, images, actions, jax.random.key(seed)))
    node = stop_by_hand(cascade, actions)
    np.testing.assert_array_equal(output.node, node)
    close(output.logits, logits[rows, node])
    for (node, observed, is_here), (answer, reached) in zip(seen[1:], output.answers):
        np.testing.assert_array_equal(is_here, reached)
        if not reached.any():
            continue
        close(answer[reached], logits[rows, node][reached])
        np.testing.assert_allclose(observed[reached], features[rows, node][reached], atol=2e-5)


@pytest.mark.parametrize("name, chunk", CHUNKS.items())
def test_served_is_compact(name, chunk):
    """Also the slots: every step runs its images in chunks, the last one filled up."""
    cascade, params, images, (logits, features) = tabulated(name)
    actions, rows = random_actions(cascade, 2), np.arange(len(images))
    output = jax.device_get(served(cascade, chunk)(params, images, actions))
    node = stop_by_hand(cascade, actions)
    np.testing.assert_array_equal(output.node, node)
    close(output.logits, logits[rows, node])
    for row, last in enumerate(node):
        path = list(cascade.path(last))
        steps = len(path)
        np.testing.assert_allclose(output.features[row, :steps], features[row, path], atol=2e-5)
        np.testing.assert_array_equal(output.predicted[row, :steps], logits[row, path].argmax(-1))
        assert not output.features[row, steps:].any() and (output.predicted[row, steps:] == -1).all()
    counts = collections.Counter(number for last in node for number in cascade.path(last))
    assert output.slots == sum(-(-count // chunk) * chunk for count in counts.values())


def test_batch_mates_do_not_matter():
    """An image gives the same with other images beside it, and alone."""
    cascade, params, images, (logits, _) = tabulated("refined")
    actions, others = random_actions(cascade, 2), drawn_images(cascade.spec, seed=7)
    order = np.roll(np.arange(BATCH), 2)
    for run in (served(cascade, 2), lambda *args: masked(cascade)(*args, jax.random.key(3))[0]):
        mixed = np.concatenate([images[:3], others[3:]])[order]
        mixed_actions = np.concatenate([actions[:3], random_actions(cascade, 5)[3:]])[order]
        expected, output = run(params, images, actions), run(params, mixed, mixed_actions)
        places = [int(np.flatnonzero(order == row)[0]) for row in range(3)]
        np.testing.assert_array_equal(output.node[jnp.asarray(places)], expected.node[:3])
        close(output.logits[jnp.asarray(places)], expected.logits[:3])
    row = int(np.argmax([len(cascade.path(node)) for node in stop_by_hand(cascade, actions)]))
    output = served(cascade, 2)(params, images[row : row + 1], actions[row : row + 1])
    close(output.logits[0], logits[row, output.node[0]])
    assert output.slots == len(cascade.path(int(output.node[0])))


def test_one_image_runs_no_loop():
    """The compiler would take the steps out of a loop whose chunks are all the same, and run those not taken, too."""
    cascade, params, images, _ = tabulated("prune")
    actions = random_actions(cascade, 2)
    programs = [
        str(
            jax.make_jaxpr(lambda p, x, a: serve_cascade(cascade, p, x, given(a), 3))(
                params, images[:size], actions[:size]
            )
        )
        for size in (1, 2)
    ]
    assert [" while[" in program for program in programs] == [False, True]


def test_one_path_is_its_part_of_the_tree():
    cascade, params, images, (logits, features) = tabulated("tome")
    node = int(np.argmax([len(cascade.path(node)) for node in range(cascade.num_nodes)]))
    output = quick_jit(lambda params, images: forward_path(cascade, params, images, node))(params, images[:1])
    close(output.logits, logits[:1, node])
    np.testing.assert_allclose(output.features, features[:1, node], atol=2e-5)


def test_bfloat16_has_float32_answers():
    cascade = random_cascade(two_looks("prune", "all", dtype="bfloat16", space=SHORT), 1)
    params, images, actions = (
        drawn_params(cascade.spec),
        drawn_images(cascade.spec),
        random_actions(cascade, 0),
    )
    masked_shapes = jax.eval_shape(
        lambda p, x: forward_cascade(cascade, p, x, given(actions))[:2], params, images
    )
    served_shapes = jax.eval_shape(
        lambda p, x: serve_cascade(cascade, p, x, given(actions), 2), params, images
    )
    for logits, node in (masked_shapes, served_shapes[:2]):
        assert (logits.shape, logits.dtype) == ((BATCH, 5), jnp.float32)
        assert (node.shape, node.dtype) == ((BATCH,), jnp.int32)
