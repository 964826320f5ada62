"""The check of the contract, against a model whose disagreements are known."""

from types import SimpleNamespace

import numpy as np
import pytest

from prance_jax.adaptive.budget import BudgetTable
from prance_jax.benchmarks import guarantee
from prance_jax.core.errors import UserError
from prance_jax.data.source import Split

LADDER = BudgetTable((3.0, 2.0, 1.0), (0.2, 0.4, 0.8), (0, 0, 0), 1)
SPLIT = Split(np.zeros((4000, 1)), np.zeros(4000), {})


def known(monkeypatch, *rates):
    """Rungs that disagree on exactly these shares of the images, the dearer on a part of the cheaper's."""
    wrong = np.stack([np.arange(4000) < rate * 4000 for rate in rates])
    monkeypatch.setattr(guarantee, "disagreements", lambda model, split: wrong)
    return SimpleNamespace(budget_table=LADDER)


def test_a_contract_is_kept(monkeypatch):
    model = known(monkeypatch, 0.1, 0.0202, 0.005)
    found = guarantee.check_guarantee(model, SPLIT, 0.02, 0.1)
    assert found["broken"] <= 0.1 and found["cheapest_true_budget"] == 0.8
    assert 0.4 < found["mean_budget"] <= 0.8


def test_one_that_cannot_be_met_is_refused(monkeypatch):
    found = guarantee.check_guarantee(known(monkeypatch, 0.5, 0.4, 0.3), SPLIT, 0.02, 0.1)
    assert found["refused"] == 1 and found["broken"] == 0 and found["mean_budget"] is None


def test_a_wrong_bound_would_be_seen(monkeypatch):
    """Taking the observed rate for the truth breaks the contract about every second time."""
    monkeypatch.setattr("prance_jax.adaptive.budget.upper_bound", lambda found, images, delta: found / images)
    found = guarantee.check_guarantee(known(monkeypatch, 0.1, 0.0202, 0.005), SPLIT, 0.02, 0.1)
    assert found["broken"] > 0.2


def test_what_it_needs(monkeypatch):
    model = known(monkeypatch, 0.1, 0.1, 0.1)
    with pytest.raises(UserError, match="4000 calibration images of 4000"):
        guarantee.check_guarantee(model, SPLIT, 0.02, 0.1, calibration=4000)
    model.budget_table = None
    with pytest.raises(UserError, match="selector of every budget"):
        guarantee.check_guarantee(model, SPLIT, 0.02, 0.1)
