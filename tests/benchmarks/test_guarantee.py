"""The check of the guarantee, on a model whose disagreements are known."""

from types import SimpleNamespace

import numpy as np
import pytest

from prance_jax.adaptive.budget import BudgetTable
from prance_jax.benchmarks import guarantee
from prance_jax.core.errors import UserError
from prance_jax.data.source import Split

BUDGET_TABLE = BudgetTable((3.0, 2.0, 1.0), (0.2, 0.4, 0.8), (0, 0, 0), 1)
SPLIT = Split(np.zeros((4000, 1)), np.zeros(4000), {})


def known(monkeypatch, *rates):
    """Calibration points that disagree on exactly these shares of the images, each on a part of the cheaper one's."""
    wrong = np.stack([np.arange(4000) < rate * 4000 for rate in rates])
    monkeypatch.setattr(guarantee, "disagreements", lambda model, split: wrong)
    return SimpleNamespace(budget_table=BUDGET_TABLE)


def test_the_guarantee_holds(monkeypatch):
    model = known(monkeypatch, 0.1, 0.0202, 0.005)
    result = guarantee.check_guarantee(model, SPLIT, 0.02, 0.1)
    assert result["broken"] <= 0.1 and result["cheapest_true_budget"] == 0.8
    assert 0.4 < result["mean_budget"] <= 0.8


def test_an_error_limit_that_no_budget_meets_is_refused(monkeypatch):
    result = guarantee.check_guarantee(known(monkeypatch, 0.5, 0.4, 0.3), SPLIT, 0.02, 0.1)
    assert result["refused"] == 1 and result["broken"] == 0 and result["mean_budget"] is None


def test_a_wrong_bound_is_noticed(monkeypatch):
    """With the observed rate in place of the bound, about every second trial exceeds the limit."""
    monkeypatch.setattr(
        "prance_jax.adaptive.budget.clopper_pearson_upper_bound",
        lambda result, images, delta: result / images,
    )
    result = guarantee.check_guarantee(known(monkeypatch, 0.1, 0.0202, 0.005), SPLIT, 0.02, 0.1)
    assert result["broken"] > 0.2


def test_what_it_needs(monkeypatch):
    model = known(monkeypatch, 0.1, 0.1, 0.1)
    with pytest.raises(UserError, match="4000 calibration images of 4000"):
        guarantee.check_guarantee(model, SPLIT, 0.02, 0.1, calibration=4000)
    model.budget_table = None
    with pytest.raises(UserError, match="selector of every budget"):
        guarantee.check_guarantee(model, SPLIT, 0.02, 0.1)
