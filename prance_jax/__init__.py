"""PRANCE in JAX: Vision Transformers that spend compute per image.

The names below are loaded when they are first used, so that `import prance_jax` stays fast.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from prance_jax.core import old_names

if TYPE_CHECKING:
    from prance_jax.models.vit import ViT
    from prance_jax.serving.exported import load_exported
    from prance_jax.serving.load import load
    from prance_jax.spec.macs import macs
    from prance_jax.spec.model_spec import ModelSpec
    from prance_jax.spec.search_space import SPACES, SearchSpace
    from prance_jax.tokens.methods.registry import METHODS
    from prance_jax.zoo.registry import create_model, list_models, register_model

__version__ = "0.1.0"
__all__ = [
    "METHODS",
    "SPACES",
    "ModelSpec",
    "SearchSpace",
    "ViT",
    "create_model",
    "list_models",
    "load",
    "load_exported",
    "macs",
    "register_model",
]

_MODULES = {
    "METHODS": "tokens.methods.registry",
    "SPACES": "spec.search_space",
    "ModelSpec": "spec.model_spec",
    "SearchSpace": "spec.search_space",
    "ViT": "models.vit",
    "create_model": "zoo.registry",
    "list_models": "zoo.registry",
    "load": "serving.load",
    "load_exported": "serving.exported",
    "macs": "spec.macs",
    "register_model": "zoo.registry",
}

old_names.install()


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
