"""Position embeddings of a file for a network of another image size, or with other tokens in front."""

from __future__ import annotations

import math

import jax
import numpy as np

from prance_jax.spec.model_spec import ModelSpec


def positions_for(embedding: np.ndarray, spec: ModelSpec, way: str = "bicubic") -> np.ndarray:
    """Positions [tokens, C] of the network from those of a file, [class tokens + side^2, C] or [side^2, C].

    A file without positions of class tokens means that nothing is added to them: zeros. What does not fit comes back as it is,
    to be told by its shape. way: see `resized`.
    """
    side = math.isqrt(len(embedding))
    if side**2 == len(embedding):
        embedding = np.pad(embedding, ((spec.class_tokens, 0), (0, 0)))
    return resize_positions(embedding, spec.tokens, spec.class_tokens, way)


def resize_positions(
    embedding: np.ndarray, tokens: int, class_tokens: int = 1, way: str = "bicubic"
) -> np.ndarray:
    """Position embeddings [class tokens + side^2, C] for another number of tokens; class tokens as they are.

    way: 'bicubic' with antialiasing (timm), or 'linear' between corners that stay where they are (big_vision).
    """
    if len(embedding) == tokens:
        return embedding
    old, new = math.isqrt(max(len(embedding) - class_tokens, 0)), math.isqrt(tokens - class_tokens)
    if old < 1 or old**2 + class_tokens != len(embedding) or new**2 + class_tokens != tokens:
        return embedding
    grid = embedding[class_tokens:].reshape(old, old, -1)
    if way == "bicubic":
        grid = np.asarray(jax.image.resize(grid, (new, new, grid.shape[-1]), "cubic", antialias=True))
    else:
        places = np.linspace(0, old - 1, new)
        weights = np.maximum(0, 1 - np.abs(places[:, None] - np.arange(old))).astype(grid.dtype)
        grid = np.einsum("ai,bj,ijc->abc", weights, weights, grid)
    return np.concatenate([embedding[:class_tokens], grid.reshape(new**2, -1)])
