"""From budgets to cost weights, and the certified budget, against numbers known from elsewhere."""

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prance_jax.adaptive.budget import BudgetTable, clopper_pearson_upper_bound
from prance_jax.core.errors import UserError

TABLE = BudgetTable((0.1, 0.01, 0.001), (0.3, 0.5, 0.8), (40, 10, 1), 1000)


def test_budgets_are_interpolated_between_calibration_points():
    assert float(TABLE.cost_weight(0.5)) == pytest.approx(0.01, rel=1e-5)
    halfway = lambda a, b: 0.01 * np.sinh((np.arcsinh(100 * a) + np.arcsinh(100 * b)) / 2)
    assert float(TABLE.cost_weight(0.4)) == pytest.approx(halfway(0.1, 0.01), rel=1e-4)
    cost_weights = jax.jit(TABLE.cost_weight)(np.array([0.3, 0.65]))
    np.testing.assert_allclose(cost_weights, [0.1, halfway(0.01, 0.001)], rtol=1e-4)


@pytest.mark.parametrize("budget", [0.1, 0.9, float("nan"), np.array([0.5, -1.0])])
def test_a_budget_that_was_not_calibrated_is_refused(budget):
    with pytest.raises(UserError, match=r"from 0.30 to 0.80"):
        TABLE.cost_weight(budget)


def test_bounds_known_from_tables():
    assert clopper_pearson_upper_bound(0, 100, 0.05) == pytest.approx(1 - 0.05**0.01, rel=1e-6)
    # Clopper-Pearson, one-sided 95 %: 3 of 50 -> 14.78 %, 10 of 100 -> 16.37 %.
    assert clopper_pearson_upper_bound(3, 50, 0.05) == pytest.approx(0.1478, abs=1e-4)
    assert clopper_pearson_upper_bound(10, 100, 0.05) == pytest.approx(0.1637, abs=1e-4)
    assert clopper_pearson_upper_bound(50, 50, 0.05) == 1.0


@given(st.integers(0, 60), st.integers(61, 3000), st.sampled_from([0.01, 0.05, 0.2]))
def test_bounds_are_those_of_the_beta_distribution(count, images, delta):
    beta = pytest.importorskip("scipy.stats").beta
    assert clopper_pearson_upper_bound(count, images, delta) == pytest.approx(
        beta.ppf(1 - delta, count + 1, images - count), rel=1e-6
    )


def test_the_certified_budget_is_the_cheapest_that_qualifies():
    assert TABLE.certified_budget(0.08, 0.05) == 0.3
    assert TABLE.certified_budget(0.03, 0.05) == 0.5
    assert TABLE.certified_budget(0.012, 0.05) == 0.8
    with pytest.raises(UserError, match="no budget .* largest one is 0.47%"):
        TABLE.certified_budget(0.001, 0.05)


def test_the_guarantee_holds_as_often_as_promised():
    """200 calibrations of networks whose true rate is known: exceeded no more often than delta allows."""
    rng, true_rates, delta = np.random.default_rng(0), np.array([0.05, 0.031, 0.02]), 0.1
    exceeded = 0
    for _ in range(200):
        disagreements = rng.binomial(500, true_rates)
        budget_table = BudgetTable((3.0, 2.0, 1.0), (0.2, 0.4, 0.8), tuple(map(int, disagreements)), 500)
        try:
            budget = budget_table.certified_budget(0.03, delta)
        except UserError:
            continue
        exceeded += true_rates[budget_table.macs_kept.index(budget)] > 0.03
    assert exceeded <= 200 * delta
