"""PRANCE in JAX: Vision Transformers that spend compute per image."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prance_jax.exported import ExportedModel
    from prance_jax.inference.model import AdaptiveModel

__version__ = "0.1.0"


def load(workdir, *, seed: int | None = None, token_mode: str | None = None) -> AdaptiveModel:
    """A trained workdir as a function of images, see `prance_jax.inference.load.load`."""
    # Not at the top: `import prance_jax` stays light, and its lower rooms do not import the higher ones.
    from prance_jax.inference.load import load

    return load(workdir, seed=seed, token_mode=token_mode)


def load_exported(path) -> ExportedModel:
    """A file of the export command as a function of images, see `prance_jax.exported.load_exported`."""
    from prance_jax.exported import load_exported

    return load_exported(path)
