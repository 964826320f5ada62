"""Checks of a model's inputs, the same for a model in this process and for an exported file."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from prance_jax.core.errors import UserError


def check_images(images: jax.Array, shape: tuple[int, int, int]) -> None:
    """Checks shape, type and values of a batch of images.

    Inside `jit`, where values are not known, only shape and type are checked.

    Args:
      images: expected to be floating point [B, *shape], B of 1 or more, finite.
      shape: (height, width, channels) that the model takes.

    Raises:
      UserError: shape or type is wrong, or a pixel is not finite.
    """
    actual_shape, dtype = jnp.shape(images), jnp.result_type(images)
    if len(actual_shape) != 4 or actual_shape[1:] != tuple(shape) or actual_shape[0] == 0:
        expected = ", ".join(map(str, shape))
        raise UserError(f"images have shape {actual_shape}; this model takes [batch, {expected}]")
    if not jnp.issubdtype(dtype, jnp.floating):
        raise UserError(f"images are {dtype}; convert and normalise them to floating point as in training")
    if isinstance(images, jax.core.Tracer):
        return
    is_bad = ~np.isfinite(np.asarray(images, np.float32)).all(axis=(1, 2, 3))
    if is_bad.any():
        raise UserError(f"image {int(is_bad.argmax())} of the batch has pixels that are not finite")


def check_budget(budget: jax.Array | float, low: float, high: float) -> None:
    """Checks that budgets lie in the calibrated range; values inside `jit` are not known and pass.

    The range has a slack of 0.005 at both ends, because the ends are measurements.

    Args:
      budget: share of the dense network's MACs; one number or an array.
      low: smallest calibrated budget.
      high: largest calibrated budget.

    Raises:
      UserError: a budget is outside the range.
    """
    if isinstance(budget, jax.core.Tracer):
        return
    values = np.atleast_1d(np.asarray(budget, np.float64))
    outside = values[~((values >= low - 0.005) & (values <= high + 0.005))]
    if outside.size:
        raise UserError(
            f"budget {outside[0]:g} is outside the calibrated range; give a share of the dense network's "
            f"MACs from {low:.2f} to {high:.2f}"
        )
