"""Old names of configuration keys, for config files and stored runs of the release before."""

import dataclasses
import warnings
from collections.abc import Mapping
from typing import Any

from prance_jax.core import fields
from prance_jax.core.errors import UserError

# Dataclass that holds the key -> {old name: current name}.
RENAMED = {
    "SelectorConfig": {"prices": "cost_weights"},
    "RewardConfig": {"price": "cost_weight", "price_rate": "cost_weight_rate"},
    "FinetuneConfig": {"on_plans": "round_to_buckets"},
    "EvaluationConfig": {"plans": "buckets"},
    "CompareConfig": {"selective": "predictor"},
    "PiTConfig": {"selective": "predictor", "sites": "predictor_blocks"},
}


def rename_key(section: type, key: str, path: str) -> str:
    """Returns the current name of a key; an old name gives a `FutureWarning`.

    Args:
      section: dataclass that holds the key.
      key: old or current name.
      path: full key of the section, for the warning.
    """
    name = _current_name(section, key)
    if name != key:
        warnings.warn(f"{path}.{key} is now called {path}.{name}", FutureWarning, stacklevel=2)
    return name


def rename_keys(section: type, mapping: Any, path: str, warn: bool) -> Any:
    """Replaces the old names of keys by the current ones, in a section and all sections in it.

    Args:
      section: dataclass of the section.
      mapping: values by key; anything but a mapping is returned as it is.
      path: full key of the section, for messages.
      warn: whether an old name gives a `FutureWarning`.

    Returns:
      Values by current key.

    Raises:
      UserError: a key is given by its old and its current name.
    """
    if not isinstance(mapping, Mapping):
        return mapping
    hints, renamed = fields.hints(section), {}
    for key, value in mapping.items():
        name = _current_name(section, key)
        if name != key and name in mapping:
            raise UserError(f"{path}: {key} is the old name of {name}; give only {name}")
        if warn:
            rename_key(section, key, path)
        kinds = fields.kinds(hints[name]) if name in hints else ()
        subsection = next((kind for kind in kinds if dataclasses.is_dataclass(kind)), None)
        renamed[name] = value
        if subsection is not None:
            renamed[name] = rename_keys(subsection, value, f"{path}.{name}", warn)
    return renamed


def _current_name(section: type, key: str) -> str:
    return RENAMED.get(section.__name__, {}).get(key, key)
