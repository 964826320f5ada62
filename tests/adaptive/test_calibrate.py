"""Where the rungs of a ladder are placed."""

import math

import numpy as np

from prance_jax.adaptive.calibrate import _placed


def test_rungs_are_put_where_macs_change():
    """A selector that jumps from a third to nine tenths within a narrow range of prices."""
    asked = []

    def share(level):
        asked.append(level)
        return 0.3 + 0.6 / (1 + math.exp(8 * (level - 1.1)))

    levels = _placed(share, -2.0, 4.0, 9, 0.03)
    shares = [share(level) for level in levels]
    assert levels[0] == 4.0 and levels[-1] == -2.0 and all(np.diff(levels) < 0)
    assert 0 < max(np.diff(shares)) <= 0.03
    assert len(set(asked)) == len(levels) < 45  # nothing is measured twice


def test_a_jump_ends_the_search():
    assert len(_placed(lambda level: float(level < 1.0), 0.0, 3.0, 5, 0.03)) == 25
