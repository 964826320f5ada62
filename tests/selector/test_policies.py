"""The random policy can be set to any mean MACs."""

import jax
import jax.numpy as jnp
import pytest
from small import KEEP, SPACE, make_spec

from prance_jax.selector.actions import ActionSpace
from prance_jax.selector.policies import RandomPolicy
from prance_jax.spec.macs import macs


def test_the_random_policy_meets_a_budget():
    spec = make_spec()
    policy = RandomPolicy(SPACE.first_group("min"), ActionSpace(SPACE, 1, (KEEP,)))
    for target in (0.3, 0.5):
        size_bias = policy.size_bias_for(spec, target)
        structure = policy.sample_structure(size_bias, jax.random.key(7), 8192)
        share = float(jnp.mean(macs(spec, structure).total)) / macs(spec, spec.largest).total
        assert share == pytest.approx(target, abs=0.01)
