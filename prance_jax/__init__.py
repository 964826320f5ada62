"""PRANCE in JAX: Vision Transformers that spend compute per image."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prance_jax.models.vit import ViT
    from prance_jax.serving.exported import ExportedModel
    from prance_jax.serving.model import AdaptiveModel

__version__ = "0.1.0"


def load(workdir, *, seed: int | None = None, token_mode: str | None = None) -> AdaptiveModel:
    """A trained workdir as a function of images, see `prance_jax.serving.load.load`."""
    # Not at the top: `import prance_jax` stays light, and its lower rooms do not import the higher ones.
    from prance_jax.serving.load import load

    return load(workdir, seed=seed, token_mode=token_mode)


def create_model(name: str, *, weights=None, **changes) -> ViT | tuple[ViT, dict]:
    """A model by name, see `prance_jax.zoo.registry.create_model`."""
    from prance_jax.zoo.registry import create_model

    return create_model(name, weights=weights, **changes)


def list_models(pattern: str = "*") -> list[str]:
    """Names for `create_model`; pattern: say 'prance*'."""
    from prance_jax.zoo.registry import list_models

    return list_models(pattern)


def register_model(name: str, spec) -> None:
    """Adds a model under a name, see `prance_jax.zoo.registry.register_model`."""
    from prance_jax.zoo.registry import register_model

    register_model(name, spec)


def load_exported(path) -> ExportedModel:
    """A file of the export command as a function of images, see `prance_jax.serving.exported.load_exported`."""
    from prance_jax.serving.exported import load_exported

    return load_exported(path)
