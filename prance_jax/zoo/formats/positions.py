"""Adapts position embeddings of a file to another image size or number of class tokens.

Libraries resize them by different rules, `RULES`; features differ by up to 2e-2.
"""

from __future__ import annotations

import math

import numpy as np

from prance_jax.spec.model_spec import ModelSpec

# timm: bicubic with antialiasing. hf: bicubic without, of Hugging Face. dino: the same with a scale that is 0.1 pixels
# larger, of the original DINO and DINOv2. bilinear: FlexiViT in timm. linear: corners aligned, of big_vision.
RULES = ("timm", "hf", "dino", "bilinear", "linear")


def positions_for(embedding: np.ndarray, spec: ModelSpec, interpolation: str = "timm") -> np.ndarray:
    """Adapts position embeddings of a file to a network.

    Prefix tokens without positions in the file get zeros.

    Args:
      embedding: float [prefix tokens + side^2, C] or [side^2, C].
      spec: of the network.
      interpolation: see `resize_positions`.

    Returns:
      float [spec.positions, C]; unchanged if it cannot fit, so that strict loading reports its shape.
    """
    side, prefix = math.isqrt(len(embedding)), spec.positions - spec.patches
    if side**2 == len(embedding):
        embedding = np.pad(embedding, ((prefix, 0), (0, 0)))
    return resize_positions(embedding, spec.positions, prefix, interpolation)


def resize_positions(
    embedding: np.ndarray, tokens: int, class_tokens: int = 1, interpolation: str = "timm"
) -> np.ndarray:
    """Resizes position embeddings to another number of patches.

    Args:
      embedding: float [class tokens + side^2, C].
      tokens: of the result, class tokens counted.
      class_tokens: whose embeddings stay unchanged.
      interpolation: one of `RULES`.

    Returns:
      float [tokens, C]; unchanged if the patches of either are not a square.
    """
    if len(embedding) == tokens:
        return embedding
    old, new = math.isqrt(max(len(embedding) - class_tokens, 0)), math.isqrt(tokens - class_tokens)
    if old < 1 or old**2 + class_tokens != len(embedding) or new**2 + class_tokens != tokens:
        return embedding
    grid = embedding[class_tokens:].reshape(old, old, -1)
    weights = resize_matrix(old, new, interpolation).astype(grid.dtype)
    grid = np.einsum("ai,bj,ijc->abc", weights, weights, grid)
    return np.concatenate([embedding[:class_tokens], grid.reshape(new**2, -1)])


def resize_matrix(old: int, new: int, rule: str) -> np.ndarray:
    """Returns the weights that resize one axis of a grid, float64 [new, old].

    Args:
      old: length of the axis.
      new: its length afterwards.
      rule: one of `RULES`.
    """
    index = np.arange(old)
    if rule == "linear":
        return np.maximum(0, 1 - np.abs(np.linspace(0, old - 1, new)[:, None] - index))
    scale = old / (new + 0.1 if rule == "dino" else new)
    centre = (np.arange(new) + 0.5) * scale - 0.5
    if rule == "timm":
        weights = _cubic((centre[:, None] - index) / max(scale, 1.0), -0.5)
        return weights / weights.sum(axis=1, keepdims=True)
    if rule == "bilinear":
        centre = np.clip(centre, 0, old - 1)
        return np.maximum(0, 1 - np.abs(centre[:, None] - index))
    matrix = np.zeros((new, old))
    for tap in range(-1, 3):  # four taps; those outside count for the border
        tap_index = np.floor(centre).astype(int) + tap
        np.add.at(matrix, (np.arange(new), np.clip(tap_index, 0, old - 1)), _cubic(centre - tap_index, -0.75))
    return matrix


def _cubic(distance: np.ndarray, a: float) -> np.ndarray:
    """Keys' cubic convolution kernel."""
    d = np.abs(distance)
    near, far = (a + 2) * d**3 - (a + 3) * d**2 + 1, a * (d**3 - 5 * d**2 + 8 * d - 4)
    return np.where(d <= 1, near, np.where(d < 2, far, 0.0))
