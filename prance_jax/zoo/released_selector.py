"""Released PRANCE selectors: an actor or a critic under the official names, told apart by their last layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from prance_jax.selector.actions import ActionSpace
from prance_jax.selector.observation import ObservationEncoder
from prance_jax.selector.rl.networks import Actor, Critic
from prance_jax.spec.model_spec import ModelSpec
from prance_jax.zoo.formats import released_prance

_LAST = {"actor": "fc_mu.weight", "critic": "fc3.weight"}


def detect_kind(tensors: Mapping[str, np.ndarray]) -> str | None:
    """'actor', 'critic', or None for what is no selector."""
    return next((own for own, last in _LAST.items() if "fc1.weight" in tensors and last in tensors), None)


def selector_weights(tensors: Mapping[str, np.ndarray], spec: ModelSpec) -> dict[str, Any]:
    """Parameters of the paper's actor or critic for a network: one number per token in, a Gaussian policy out.

    Raises UserError that lists every tensor that is missing, left over or of another shape.
    """
    own = detect_kind(tensors)
    network = Actor(ActionSpace(spec.space, spec.rates).components) if own == "actor" else Critic()
    blank = jax.ShapeDtypeStruct((1, ObservationEncoder(spec, "keys").size), "float32")
    wanted = jax.eval_shape(network.init, jax.random.key(0), blank)["params"]
    return released_prance.selector_params(tensors, wanted, own)
