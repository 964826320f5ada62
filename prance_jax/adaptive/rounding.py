"""Decisions rounded up to buckets: an image uses all the compute that its bucket takes anyway."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from prance_jax.adaptive.buckets import Buckets
from prance_jax.models.forward import Decide
from prance_jax.models.outputs import GroupState
from prance_jax.selector.policies import DecisionPolicy
from prance_jax.spec.structure import GroupChoice


@dataclass(frozen=True)
class BucketedPolicy:
    """Another policy, with its decisions rounded up to buckets.

    An image takes the time of its bucket, however much of it is used; here all of it is used. The
    network is never smaller than what the inner policy chose, and still nothing depends on the
    other images of a batch.

    Attributes:
      policy: the inner policy.
      buckets: the buckets to round up to.
    """

    policy: DecisionPolicy
    buckets: Buckets

    @property
    def first_choice(self) -> GroupChoice:
        """Choice of group 0."""
        return self.policy.first_choice

    def decide(self, policy_params: Any, key: jax.Array) -> Decide:
        """Returns the rounded decisions of the inner policy.

        Args:
          policy_params: parameters of the inner policy.
          key: random key of the inner policy.
        """
        inner = self.policy.decide(policy_params, key)

        def choose(group: int, state: GroupState) -> GroupChoice:
            shape = state.tokens.features.shape[:1]
            choice = jax.tree.map(lambda size: jnp.broadcast_to(size, shape), inner(group, state))
            return self.buckets.rounded(group, choice, jnp.broadcast_to(state.tokens.count, shape))

        return choose
