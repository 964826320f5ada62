"""Adapts position embeddings of a file to another image size or number of class tokens."""

from __future__ import annotations

import math

import jax
import numpy as np

from prance_jax.spec.model_spec import ModelSpec


def positions_for(embedding: np.ndarray, spec: ModelSpec, interpolation: str = "bicubic") -> np.ndarray:
    """Adapts position embeddings of a file to a network.

    Class tokens without positions in the file get zeros.

    Args:
      embedding: float [class tokens + side^2, C] or [side^2, C].
      spec: of the network.
      interpolation: see `resize_positions`.

    Returns:
      float [spec.positions, C]; unchanged if it cannot fit, so that strict loading reports its shape.
    """
    side = math.isqrt(len(embedding))
    if side**2 == len(embedding):
        embedding = np.pad(embedding, ((spec.class_tokens, 0), (0, 0)))
    return resize_positions(embedding, spec.positions, spec.class_tokens, interpolation)


def resize_positions(
    embedding: np.ndarray, tokens: int, class_tokens: int = 1, interpolation: str = "bicubic"
) -> np.ndarray:
    """Resizes position embeddings to another number of patches.

    Args:
      embedding: float [class tokens + side^2, C].
      tokens: of the result, class tokens counted.
      class_tokens: whose embeddings stay unchanged.
      interpolation: 'bicubic' with antialiasing (as timm), or 'linear' with aligned corners (as
        big_vision).

    Returns:
      float [tokens, C]; unchanged if the patches of either are not a square.
    """
    if len(embedding) == tokens:
        return embedding
    old, new = math.isqrt(max(len(embedding) - class_tokens, 0)), math.isqrt(tokens - class_tokens)
    if old < 1 or old**2 + class_tokens != len(embedding) or new**2 + class_tokens != tokens:
        return embedding
    grid = embedding[class_tokens:].reshape(old, old, -1)
    if interpolation == "bicubic":
        with jax.enable_x64(False):  # else the weights would be computed in 64 bits where the flag is set
            grid = np.asarray(jax.image.resize(grid, (new, new, grid.shape[-1]), "cubic", antialias=True))
    else:
        coordinates = np.linspace(0, old - 1, new)
        weights = np.maximum(0, 1 - np.abs(coordinates[:, None] - np.arange(old))).astype(grid.dtype)
        grid = np.einsum("ai,bj,ijc->abc", weights, weights, grid)
    return np.concatenate([embedding[:class_tokens], grid.reshape(new**2, -1)])
