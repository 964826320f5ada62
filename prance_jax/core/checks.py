"""Checks of a model's inputs, the same for a network, a model in this process and an exported file."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from prance_jax.core.errors import UserError


def check_images(images: jax.Array, shape: tuple[int, int, int]) -> None:
    """Checks shape and type of a batch of images; both are static, so `jit` checks them once and it costs nothing.

    Args:
      images: expected to be one floating point array [B, *shape], B of 1 or more.
      shape: (height, width, channels) that the network takes.

    Raises:
      UserError: it is no array, or its shape or type is wrong.
    """
    expected = f"[batch, {', '.join(map(str, shape))}]"
    if not isinstance(images, (np.ndarray, jax.Array)):
        name = type(images).__name__
        raise UserError(f"images are a {name}; this model takes one NumPy or JAX array {expected}")
    if images.ndim != 4 or images.shape[1:] != tuple(shape) or images.shape[0] == 0:
        hint = ""
        if images.shape == tuple(shape):
            hint = ": add the batch axis, images[None]"
        elif images.ndim == 4 and images.shape[1:] == (shape[2], *shape[:2]):
            hint = ": move the channels last, images.transpose(0, 2, 3, 1)"
        raise UserError(f"images have shape {images.shape}; this model takes {expected}{hint}")
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise UserError(
            f"images are {images.dtype}; convert and normalise them to floating point as in training"
        )


def check_finite(images: jax.Array) -> None:
    """Checks that all pixels are finite; values inside `jit` are not known and pass.

    Args:
      images: float [B, height, width, channels].

    Raises:
      UserError: a pixel is not finite.
    """
    if isinstance(images, jax.core.Tracer):
        return
    is_bad = ~np.isfinite(np.asarray(images, np.float32)).all(axis=(1, 2, 3))
    if is_bad.any():
        raise UserError(f"image {int(is_bad.argmax())} of the batch has pixels that are not finite")


def check_budget(budget: jax.Array | float, low: float, high: float, batch: int | None = None) -> None:
    """Checks that budgets lie in the calibrated range; values inside `jit` are not known and pass.

    The range has a slack of 0.005 at both ends, because the ends are measurements.

    Args:
      budget: share of the dense network's MACs; one number or an array.
      low: smallest calibrated budget.
      high: largest calibrated budget.
      batch: number of images; a budget is then one number, or one for each image. None allows any shape.

    Raises:
      UserError: a budget is no number or outside the range, or there are fewer or more budgets than images.
    """
    is_traced = any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(budget))
    try:
        values = jnp.asarray(budget, jnp.float32) if is_traced else np.asarray(budget, np.float64)
    except (TypeError, ValueError):
        raise UserError(f"budget {budget!r} is no number; give a share of the dense network's MACs") from None
    if batch is not None and values.shape not in ((), (batch,)):
        raise UserError(
            f"budget has shape {values.shape}; give one number, or one for each of the {batch} images"
        )
    if is_traced:
        return
    outside = values[~((values >= low - 0.005) & (values <= high + 0.005))]
    if outside.size:
        raise UserError(
            f"budget {outside.flat[0]:g} is outside the calibrated range; give a share of the dense network's "
            f"MACs from {low:.2f} to {high:.2f}"
        )
