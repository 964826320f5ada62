"""Confidence thresholds against brute force, calibration of the cost weight, and PPO against the optimum."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cascade.examples import SHORT, stop_by_hand, two_looks, vit

from prance_jax.cascade.observation import LARGEST_PROBABILITY, NUM_FEATURES
from prance_jax.cascade.policies import confidence_decisions
from prance_jax.cascade.routing import (
    ConfidenceChoice,
    ConfidenceRule,
    best_confidence_rule,
    confidence_choices,
    confidence_demonstrations,
    confidence_nodes,
    confidence_rule_at,
    cost_weight_for,
    route,
    selector_actions,
)
from prance_jax.cascade.table import CascadeTable, TableEnv, TableParams, optimal_actions, stop_nodes
from prance_jax.selector.cost_weight import cost_weight_from_asinh, cost_weight_to_asinh
from prance_jax.selector.rl.distributions import MultiCategorical
from prance_jax.selector.rl.ppo import PPO
from prance_jax.selector.rl.types import PPOConfig
from prance_jax.spec.cascade import START, Cascade, CascadeSpec, Look, Step

GROUPS = vit(space=SHORT).largest.groups
# start -> 1 -> 2, and 1 -> 3 -> 4.
TREE = Cascade(
    two_looks(space=SHORT),
    (
        Step(0, 0, 0, GROUPS[:1]),
        Step(1, 0, 1, GROUPS[1:]),
        Step(1, 1, 0, GROUPS[:1]),
        Step(3, 1, 1, GROUPS[1:]),
    ),
)
COST = np.array([0.0, 0.2, 0.5, 0.6, 1.0], np.float32)


def table_of(correct, confidence, cost=COST):
    """A table from what is right and how sure it is, [N, nodes] each."""
    features = np.zeros((*correct.shape, NUM_FEATURES), np.float32)
    features[:, :, LARGEST_PROBABILITY] = confidence
    predicted = np.where(correct, 1, 0)
    predicted[:, START] = -1
    labels = np.ones(len(correct), int)
    return CascadeTable(*map(jnp.asarray, (features, predicted, correct.astype(np.float32), labels, cost)))


def random_table(seed, images=7):
    rng = np.random.default_rng(seed)
    confidence = rng.random((images, 5))
    correct = rng.random((images, 5)) < confidence
    correct[:, START] = False
    return table_of(correct, confidence)


def best_by_hand(table, budget):
    """Accuracy and cost of the best rule: every path, every choice of its exits, every threshold that differs."""
    confidence, correct = np.asarray(table.features)[:, :, LARGEST_PROBABILITY], np.asarray(table.correct)
    values = np.sort(confidence.ravel())
    thresholds = [*(values[1:] + values[:-1]) / 2, 2.0]
    results = []
    for path in ((1,), (1, 2), (1, 3), (1, 3, 4)):
        for size in range(len(path)):
            for used in itertools.combinations(path[:-1], size):
                for threshold in thresholds:
                    stops = [next((n for n in used if row[n] >= threshold), path[-1]) for row in confidence]
                    hits = [correct[image, node] for image, node in enumerate(stops)]
                    results.append((np.mean(hits), np.mean([float(COST[n]) for n in stops])))
    return max((r for r in results if r[1] <= budget), key=lambda r: (r[0], -r[1]), default=None)


@pytest.mark.parametrize("budget", [0.3, 0.55, 0.8])
@pytest.mark.parametrize("seed", [0, 1])
def test_best_confidence_rule_is_that_of_brute_force(seed, budget):
    table = random_table(seed)
    rule = best_confidence_rule(confidence_choices(TREE, table, num_thresholds=200), budget)
    routed = route(table, confidence_nodes(table, rule))
    accuracy, cost = best_by_hand(table, budget)
    assert routed.correct.mean() == pytest.approx(accuracy)
    assert routed.cost.mean() == pytest.approx(cost)


def test_without_a_rule_within_the_budget_the_cheapest():
    rule = best_confidence_rule(confidence_choices(TREE, random_table(0)), 0.1)
    assert (rule.path, rule.exits) == ((1,), (1,))


def test_a_rule_at_a_budget_is_the_most_accurate_near_it():
    """By hand: 0.49 and 0.51 are within 2 % of 0.5; 0.48, more accurate, is not."""
    rules = [ConfidenceRule((1,), (1,), number / 10) for number in range(4)]
    figures = ((0.9, 0.48), (0.7, 0.491), (0.8, 0.509), (0.6, 0.5))
    choices = [ConfidenceChoice(rule, *pair) for rule, pair in zip(rules, figures)]
    assert confidence_rule_at(choices, 0.5) == rules[2]
    assert confidence_rule_at(choices, 0.45) is None


@pytest.mark.parametrize("exits", [(1, 3, 4), (3, 4), (4,)])
def test_decisions_of_a_rule_stop_where_it_stops(exits):
    table, rule = random_table(5, images=40), ConfidenceRule((1, 3, 4), exits, 0.6)
    decide = confidence_decisions(TREE, rule)
    actions = [decide(jnp.full(40, node), table.features[:, node]) for node in range(TREE.num_nodes)]
    np.testing.assert_array_equal(stop_nodes(TREE, jnp.stack(actions, axis=1)), confidence_nodes(table, rule))


@pytest.mark.parametrize("cost_weight", [0.05, 0.6, 3.0])
def test_demonstrations_lead_where_the_rule_stops(cost_weight):
    table = random_table(4, images=30)
    choices = confidence_choices(TREE, table)
    rule = max(choices, key=lambda choice: choice.accuracy - cost_weight * choice.cost).rule
    rows = confidence_demonstrations(TREE, table, choices, np.array([cost_weight]))
    nodes = np.asarray(rows.observation)[:, NUM_FEATURES:-1].argmax(axis=1)
    assert np.asarray(rows.mask)[np.arange(len(nodes)), np.asarray(rows.action)[:, 0]].all()
    actions = np.full((30, TREE.num_nodes), -1)
    for row, (node, weight) in enumerate(zip(nodes, np.asarray(rows.weight))):
        if weight:
            actions[row % 30, node] = rows.action[row, 0]
    actions[:, [2, 4]] = 0  # no other action
    np.testing.assert_array_equal(stop_by_hand(TREE, actions), confidence_nodes(table, rule))


def test_cost_weight_meets_a_budget():
    table, (low, high) = random_table(3, images=200), (0.01, 5.0)
    actions_at = lambda weight: optimal_actions(TREE, table, weight)
    spent = lambda weight: float(route(table, stop_nodes(TREE, actions_at(weight))).cost.mean())
    assert spent(high) < 0.25 < spent(low)
    weight = cost_weight_for(TREE, actions_at, table, 0.25, (low, high))
    assert spent(weight) <= 0.25
    smaller = (
        cost_weight_to_asinh(weight) - float(cost_weight_to_asinh(high) - cost_weight_to_asinh(low)) / 2**13
    )
    assert spent(float(cost_weight_from_asinh(smaller))) > 0.25
    assert cost_weight_for(TREE, actions_at, table, 0.1, (low, high)) == pytest.approx(high, rel=1e-5)


def test_ppo_reaches_the_optimum_where_features_reveal_what_is_right():
    """start -> 1 -> 2; the features at node 1 show whether it is right, and whether node 2 is."""
    spec = CascadeSpec((Look(vit(space=SHORT)),))
    cascade = Cascade(spec, (Step(0, 0, 0, GROUPS[:1]), Step(1, 0, 1, GROUPS[1:])))
    rng = np.random.default_rng(0)
    correct = rng.random((128, 3)) < [0, 0.5, 0.8]
    table = table_of(correct, 0 * correct, np.array([0.0, 0.3, 1.0], np.float32))
    table = table._replace(features=table.features.at[:, 1, :2].set(correct[:, 1:]))
    env, cost_weight = TableEnv(cascade, 256, sees_every_budget=False), jnp.float32(0.5)
    settings = PPOConfig(gamma=1.0, lam=0.95, epochs=4, minibatches=2, actor_lr=1e-2, critic_lr=1e-2)
    ppo = PPO(settings, MultiCategorical((2,)), env.observation_size, (16,), 60)
    train = jax.jit(lambda state, key: ppo.train(state, env, TableParams(table, cost_weight), key, 60)[0])
    state = train(ppo.init(jax.random.key(0)), jax.random.key(1))

    def mean_utility(actions):
        routed = route(table, stop_nodes(cascade, actions))
        return (routed.correct - 0.5 * routed.cost).mean()

    best = mean_utility(optimal_actions(cascade, table, cost_weight))
    # Right at once, right later, never right.
    at_once, later = correct[:, 1], ~correct[:, 1] & correct[:, 2]
    assert best == pytest.approx((0.85 * at_once + 0.5 * later - 0.15 * ~(at_once | later)).mean(), rel=1e-5)
    assert mean_utility(jnp.ones((128, 3), int)) < 0.75 * best
    reached = mean_utility(selector_actions(cascade, ppo, state.policy, table, 0.5))
    assert reached == pytest.approx(best, rel=0.02)
