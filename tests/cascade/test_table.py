"""The decision process as a table: what the network gives, image by image, and equal returns on equal episodes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cascade.examples import SHORT, drawn_images, drawn_params, random_cascade, stop_by_hand, two_looks
from small import quick_jit

from prance_jax.cascade.forward import forward_cascade, forward_path
from prance_jax.cascade.observation import LARGEST_PROBABILITY, NUM_FEATURES, observation_size, observe
from prance_jax.cascade.table import (
    CascadeTable,
    TableEnv,
    TableParams,
    node_costs,
    optimal_actions,
    stop_nodes,
    tabulate,
)
from prance_jax.core.errors import UserError
from prance_jax.selector.cost_weight import cost_weight_to_asinh, reward_scale
from prance_jax.spec.cascade import START

CASCADE = random_cascade(two_looks("prune", space=SHORT), 1)
IMAGES, LABELS = drawn_images(CASCADE.spec, 10), np.arange(10) % 5
NODES = CASCADE.num_nodes
LEAVES = np.array([not children for children in CASCADE.children])


@pytest.fixture(scope="module")
def table():
    """In batches of 4, the last one with 2 images."""
    return tabulate(CASCADE, drawn_params(CASCADE.spec), IMAGES, LABELS, decision_cost=100, batch=4)


def made_up(seed, images=40):
    """A table of random numbers; at the start quality and cost are 0."""
    rng = np.random.default_rng(seed)
    quality, cost = rng.random((images, NODES)), rng.random(NODES)
    quality[:, START] = cost[START] = 0
    features, labels = rng.random((images, NODES, NUM_FEATURES)), rng.integers(0, 5, images)
    predicted = jnp.asarray(rng.integers(0, 5, (images, NODES)))
    arrays = (jnp.asarray(array, jnp.float32) for array in (features, quality, cost))
    features, quality, cost = arrays
    return CascadeTable(features, predicted, quality, jnp.asarray(labels), cost)


def utility(table, image, node, cost_weight):
    return np.asarray(table.quality)[image, node] - cost_weight * np.asarray(table.cost)[node]


def test_a_table_has_what_the_network_gives_for_each_image(table):
    params = drawn_params(CASCADE.spec)
    assert not table.features[:, START].any() and not table.quality[:, START].any()
    assert (table.predicted[:, START] == -1).all() and not table.correct[:, START].any()
    for node in (1, int(np.argmax([len(CASCADE.path(n)) for n in range(NODES)]))):
        run = quick_jit(functools.partial(forward_path, CASCADE, node=node))
        for image in (0, 9):
            output = run(params, IMAGES[image : image + 1])
            np.testing.assert_allclose(table.features[image, node], output.features[0], atol=2e-5)
            assert table.predicted[image, node] == output.logits[0].argmax()
            assert table.quality[image, node] == (output.logits[0].argmax() == LABELS[image])


def test_quality_by_probability(table):
    by_probability = tabulate(
        CASCADE, drawn_params(CASCADE.spec), IMAGES, LABELS, quality="probability", batch=4
    )
    quality, largest = by_probability.quality, by_probability.features[:, :, LARGEST_PROBABILITY]
    is_right = np.asarray(table.correct)[:, 1:]
    np.testing.assert_allclose(quality[:, 1:][is_right], largest[:, 1:][is_right], atol=1e-6)
    assert (quality[:, 1:][~is_right] < largest[:, 1:][~is_right]).all() and not quality[:, START].any()
    with pytest.raises(UserError, match="quality='loss' is not known; choose 'correct' or 'probability'"):
        tabulate(CASCADE, {}, IMAGES, LABELS, quality="loss")


def test_costs_by_hand():
    """A decision before every step, and one to stop where an image could go on."""
    costs = node_costs(CASCADE, decision_cost=1000) * CASCADE.spec.dense_macs
    assert costs[START] == 0
    for node in range(1, NODES):
        decisions = len(CASCADE.path(node)) + (not LEAVES[node])
        assert costs[node] == pytest.approx(CASCADE.macs[node] + 1000 * decisions)


@pytest.mark.parametrize("cost_weight", [-0.5, 0.0, 0.3, 2.0])
def test_optimal_actions_are_the_best_nodes(cost_weight):
    table = made_up(3)
    nodes = np.asarray(stop_nodes(CASCADE, optimal_actions(CASCADE, table, cost_weight)))
    rows = np.arange(len(nodes))
    every = utility(table, rows[:, None], np.arange(1, NODES), cost_weight)
    np.testing.assert_allclose(utility(table, rows, nodes, cost_weight), every.max(axis=1), rtol=1e-6)
    if cost_weight > 0:
        assert len(set(nodes.tolist())) > 1


def test_images_stop_where_their_actions_lead():
    rng = np.random.default_rng(0)
    columns = [
        rng.integers(node == START, len(children) + 1, 50) for node, children in enumerate(CASCADE.children)
    ]
    actions = np.stack(columns, axis=1)
    np.testing.assert_array_equal(stop_nodes(CASCADE, jnp.asarray(actions)), stop_by_hand(CASCADE, actions))


def play(env, env_params, key, choose):
    """Returns of all episodes, where they ended, and the first state; `choose` maps observation and mask to actions."""
    observation, state = jax.jit(env.reset)(key, env_params)
    first, total, going, step = state, np.zeros(env.batch), np.ones(env.batch, bool), jax.jit(env.step)
    end = np.zeros(env.batch, int)
    for _ in range(env.horizon):
        mask = np.asarray(env.action_mask(state, env_params))
        node = np.asarray(state.node)
        np.testing.assert_array_equal(
            mask.sum(axis=1), [len(CASCADE.children[n]) + (n != START) for n in node]
        )
        action = choose(np.asarray(observation), mask)
        assert mask[np.arange(env.batch), action].all()
        observation, state, reward, done, info = step(key, state, jnp.asarray(action)[:, None], env_params)
        np.testing.assert_array_equal(done, (action == 0) | LEAVES[state.node])
        total += np.where(going, reward, 0.0)
        end = np.where(going, state.node, end)
        np.testing.assert_array_equal(info["macs_kept"], env_params.table.cost[state.node])
        going &= ~np.asarray(done)
    assert not going.any()
    return total, end, first


@pytest.mark.parametrize("every_budget", [False, True])
def test_returns_of_random_episodes(every_budget):
    """The utility where the episode ends; scaled if every episode has its own cost weight."""
    env, rng = TableEnv(CASCADE, 64, every_budget), np.random.default_rng(1)
    cost_weight = (jnp.float32(0.1), jnp.float32(2.0)) if every_budget else jnp.float32(0.7)
    env_params = TableParams(made_up(5), cost_weight)
    choose = lambda observation, mask: (mask * rng.random(mask.shape)).argmax(axis=1)
    total, end, first = play(env, env_params, jax.random.key(2), choose)
    weights = np.asarray(first.cost_weight)
    scale = np.asarray(reward_scale(first.cost_weight)) if every_budget else 1.0
    np.testing.assert_allclose(total, scale * utility(env_params.table, first.image, end, weights), atol=1e-5)
    assert len(set(end.tolist())) == NODES - 1 and len(set(np.asarray(first.image).tolist())) > 20
    assert (
        len(set(weights.tolist())) == (64 if every_budget else 1)
        and 0.1 <= weights.min() <= weights.max() <= 2
    )


def test_equal_episodes_have_equal_returns_in_the_table_and_in_the_network(table):
    """Stop if the largest probability reaches a threshold, else take the last step."""
    confidence = np.sort(np.asarray(table.features)[:, ~LEAVES, LARGEST_PROBABILITY][:, 1:].ravel())
    num_children = np.array([len(children) for children in CASCADE.children])
    threshold = (confidence[len(confidence) // 2 - 1] + confidence[len(confidence) // 2]) / 2
    env, cost_weight = TableEnv(CASCADE, 16, False), 0.4
    choose = lambda observation, mask: np.where(
        (observation[:, LARGEST_PROBABILITY] >= threshold) & mask[:, 0], 0, mask[:, 1:].sum(axis=1)
    )
    total, end, first = play(env, TableParams(table, jnp.float32(cost_weight)), jax.random.key(4), choose)

    def decide(node, features):
        stops = (features[:, LARGEST_PROBABILITY] >= threshold) & (node != START)
        return jnp.where(stops, 0, jnp.asarray(num_children)[node])

    run = quick_jit(lambda params, images: forward_cascade(CASCADE, params, images, decide)[:2])
    logits, node = jax.device_get(run(drawn_params(CASCADE.spec), IMAGES[first.image]))
    np.testing.assert_array_equal(end, node)
    assert len(set(node.tolist())) > 1
    costs = node_costs(CASCADE, decision_cost=100)[node]
    quality = logits.argmax(-1) == LABELS[np.asarray(first.image)]
    np.testing.assert_allclose(total, quality - cost_weight * costs, atol=1e-5)


def test_observations_by_hand():
    rng = np.random.default_rng(0)
    features = rng.random((3, NUM_FEATURES)).astype(np.float32)
    observation = np.asarray(observe(CASCADE, jnp.array([0, 2, 1]), features, jnp.array([0.0, 0.1, 1.0])))
    assert observation.shape == (3, observation_size(CASCADE)) == (3, TableEnv(CASCADE, 2).observation_size)
    np.testing.assert_array_equal(observation[:, :NUM_FEATURES], features)
    np.testing.assert_array_equal(observation[:, NUM_FEATURES:-1], np.eye(NODES)[[0, 2, 1]])
    np.testing.assert_allclose(observation[:, -1], cost_weight_to_asinh(np.array([0.0, 0.1, 1.0])))
