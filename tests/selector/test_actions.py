"""Actions: from indices or numbers in [0, 1] to widths, MLP sizes and keep rates, by hand."""

import jax.numpy as jnp
import numpy as np
import pytest
from small import KEEP, SPACE

from prance_jax.core.errors import UserError
from prance_jax.selector.actions import ActionSpace


def test_discrete_actions_by_hand():
    actions = ActionSpace(SPACE, 2, (KEEP, KEEP))
    assert actions.nvec == (3, 3, 3, 3, 4, 4) and actions.components == 6
    choice = actions.decode(jnp.array([[0, 2, 1, 2, 0, 3]]), 1)
    assert [int(x[0]) for x in choice.widths] == [24, 28]
    assert [int(x[0]) for x in choice.mlp_dims] == [24, 28 * 3]
    np.testing.assert_allclose([float(x[0]) for x in choice.keep], [0.3, 1.0])


def test_continuous_actions_round_halves_to_even_and_clip():
    actions = ActionSpace(SPACE, 1)
    # round(0.25 x 2) = round(0.5) = 0, round(0.75 x 2) = round(1.5) = 2; outside [0, 1] is clipped.
    choice = actions.decode(jnp.array([[0.25, 0.75, -3.0, 9.0, 0.123]]), 2)
    assert [int(x[0]) for x in choice.widths] == [16, 28]
    assert [int(x[0]) for x in choice.mlp_dims] == [16, 28 * 3]
    np.testing.assert_allclose(float(choice.keep[0][0]), 0.123, rtol=1e-6)


@pytest.mark.parametrize(
    "choices", [((0.0, 0.5),), ((0.5, float("nan")),), ((),), ((0.5,), (0.5,)), ((0.8, 0.5),)]
)
def test_impossible_keep_choices_are_refused(choices):
    with pytest.raises(UserError, match="keep"):
        ActionSpace(SPACE, 1, choices)
