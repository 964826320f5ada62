"""Decisions rounded up to plans: an image takes all that it pays for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from prance_jax.adaptive.buckets import Buckets
from prance_jax.models.forward import Decide
from prance_jax.models.vit import GroupState
from prance_jax.selector.policies import DecisionPolicy
from prance_jax.spec.structure import GroupChoice


@dataclass(frozen=True)
class BucketedPolicy:
    """Another rule, its decisions rounded up to plans.

    An image runs in the time of its plan whatever it uses of it; here it uses all of it. Never a smaller network than
    the rule asked for, and still nothing depends on the rest of a batch. variables: of the inner rule.
    """

    policy: DecisionPolicy
    buckets: Buckets

    @property
    def first_choice(self) -> GroupChoice:
        return self.policy.first_choice

    def decide(self, policy_params: Any, key: jax.Array) -> Decide:
        wanted = self.policy.decide(policy_params, key)

        def choose(group: int, state: GroupState) -> GroupChoice:
            shape = state.tokens.features.shape[:1]
            choice = jax.tree.map(lambda size: jnp.broadcast_to(size, shape), wanted(group, state))
            return self.buckets.rounded(group, choice, jnp.broadcast_to(state.tokens.count, shape))

        return choose
