"""What a rule decides on calibration images, and the plans that follow from it."""

from __future__ import annotations

import functools
from typing import Any, Callable

import jax
import jax.numpy as jnp
import numpy as np

from prance_jax.inference.plans import Plans, choose_plans
from prance_jax.models.vit import ViT
from prance_jax.models.walk import walk
from prance_jax.selector.decide import Rule
from prance_jax.space import Structure
from prance_jax.spec import ModelSpec


@functools.lru_cache(maxsize=None)
def _decisions(spec: ModelSpec, rule: Rule) -> Callable:
    def run(params, variables, images, key):
        outcome = walk(ViT(spec), params, images, rule.first, rule.decide(variables, key))
        return jax.tree.map(
            lambda size: jnp.broadcast_to(size, images.shape[:1]), outcome.structure.groups[1:]
        )

    return jax.jit(run)


def decisions(
    spec: ModelSpec, rule: Rule, params: Any, variables: Any, images: np.ndarray, batch: int = 250
) -> Structure:
    """The structure that `rule` gives each of the images [N, S, S, channels]: group 0 static, other entries [N]."""
    run, parts = _decisions(spec, rule), []
    for number, start in enumerate(range(0, len(images), batch)):
        part = images[start : start + batch]
        padded = np.pad(part, [(0, batch - len(part))] + [(0, 0)] * 3)
        found = jax.device_get(run(params, variables, padded, jax.random.fold_in(jax.random.key(0), number)))
        parts.append(jax.tree.map(lambda leaf: leaf[: len(part)], found))
    return Structure((rule.first, *jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)))


def calibrated_plans(
    spec: ModelSpec,
    rule: Rule,
    params: Any,
    variables: Any,
    images: np.ndarray,
    number: int = 4,
    multiple: int = 8,
) -> Plans:
    """Plans for a rule from what it decides on calibration images, see `choose_plans`."""
    return choose_plans(spec, decisions(spec, rule, params, variables, images), number, multiple)
