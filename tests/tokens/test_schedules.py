"""Schedules: their counts are possible for every depth and number of tokens, and bad ones are refused."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prance_jax.core.errors import UserError
from prance_jax.tokens.schedules import Constant, KeepRate, Kept, Removed, Sites


@settings(max_examples=40)
@given(st.integers(1, 30), st.integers(0, 300), st.floats(-1, 1), st.integers(2, 600))
def test_schedules_never_remove_everything(depth, amount, inflect, tokens):
    for schedule in (
        Constant(amount, inflect),
        Sites(amount, (0, depth - 1)),
        KeepRate(0.3, (0, depth - 1)),
        Removed((amount,) * (depth + 2)),
    ):
        counts = schedule.tokens_after(depth, tokens)
        assert len(counts) == depth and min(counts) >= 1 and list(counts) == sorted(counts, reverse=True)
        assert counts[0] <= tokens


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Constant(-1), "r=-1 must be 0 or more"),
        (lambda: Constant(8, 2.0), "inflect=2.0"),
        (lambda: KeepRate(0.0), "keep rate 0.0"),
        (lambda: KeepRate(float("nan")), "keep rate nan"),
        (lambda: Removed((3, -1)), "whole numbers"),
        (lambda: Sites(5, (12,)).tokens_after(12, 197), "layers from 0 to 11"),
        (lambda: Kept((5, 9)).tokens_after(2, 10), "never rise"),
    ],
)
def test_bad_schedules_are_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()
