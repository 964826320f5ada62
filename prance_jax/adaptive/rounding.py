"""Decisions rounded up to plans: an image takes all that it pays for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from prance_jax.adaptive.buckets import Plans
from prance_jax.models.forward import Decide
from prance_jax.models.vit import Midway
from prance_jax.selector.policies import Rule
from prance_jax.spec.structure import GroupChoice


@dataclass(frozen=True)
class RoundedRule:
    """Another rule, its decisions rounded up to plans.

    An image runs in the time of its plan whatever it uses of it; here it uses all of it. Never a smaller network than
    the rule asked for, and still nothing depends on the rest of a batch. variables: of the inner rule.
    """

    rule: Rule
    plans: Plans

    @property
    def first(self) -> GroupChoice:
        return self.rule.first

    def decide(self, variables: Any, key: jax.Array) -> Decide:
        wanted = self.rule.decide(variables, key)

        def choose(group: int, midway: Midway) -> GroupChoice:
            shape = midway.tokens.features.shape[:1]
            choice = jax.tree.map(lambda size: jnp.broadcast_to(size, shape), wanted(group, midway))
            return self.plans.rounded(group, choice, jnp.broadcast_to(midway.tokens.count, shape))

        return choose
