"""Released PRANCE selectors: an actor or a critic under the official names."""

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
    """Detects a selector by the name of its last layer.

    Returns:
      'actor' or 'critic'; None for other files.
    """
    return next((kind for kind, last in _LAST.items() if "fc1.weight" in tensors and last in tensors), None)


def load_selector_params(tensors: Mapping[str, np.ndarray], spec: ModelSpec) -> dict[str, Any]:
    """Reads the parameters of the paper's actor or critic.

    Their observation has one number per token; the actor's policy is Gaussian.

    Args:
      tensors: name -> array of the file.
      spec: of the network that the selector decides for.

    Raises:
      UserError: lists every tensor that is missing, not used or of another shape.
    """
    kind = detect_kind(tensors)
    network = Actor(ActionSpace(spec.space, spec.rates).components) if kind == "actor" else Critic()
    observation = jax.ShapeDtypeStruct((1, ObservationEncoder(spec, "keys").size), "float32")
    template = jax.eval_shape(network.init, jax.random.key(0), observation)["params"]
    return released_prance.selector_params(tensors, template, kind)
