"""Where calibration points are placed."""

import math

import numpy as np

from prance_jax.adaptive.calibrate import _place_points


def test_points_are_placed_where_macs_change():
    """A selector that jumps from a third to nine tenths within a narrow range of cost weights."""
    calls = []

    def share(point):
        calls.append(point)
        return 0.3 + 0.6 / (1 + math.exp(8 * (point - 1.1)))

    points = _place_points(share, -2.0, 4.0, 9, 0.03)
    shares = [share(point) for point in points]
    assert points[0] == 4.0 and points[-1] == -2.0 and all(np.diff(points) < 0)
    assert 0 < max(np.diff(shares)) <= 0.03
    assert len(set(calls)) == len(points) < 45  # nothing is measured twice


def test_a_jump_ends_the_search():
    assert len(_place_points(lambda point: float(point < 1.0), 0.0, 3.0, 5, 0.03)) == 25
