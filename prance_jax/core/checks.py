"""What a model takes: the checks at its door, the same in this process and for an exported file."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from prance_jax.core.errors import UserError


def check_images(images: jax.Array, shape: tuple[int, int, int]) -> None:
    """Raises UserError unless images are floating point [B, *shape] with B of 1 or more and finite.

    Inside jit, where values are not known, only shape and type are checked.
    """
    found, dtype = jnp.shape(images), jnp.result_type(images)
    if len(found) != 4 or found[1:] != tuple(shape) or found[0] == 0:
        raise UserError(f"images have shape {found}; this model takes [batch, {', '.join(map(str, shape))}]")
    if not jnp.issubdtype(dtype, jnp.floating):
        raise UserError(f"images are {dtype}; convert and normalise them to floating point as in training")
    if isinstance(images, jax.core.Tracer):
        return
    bad = ~np.isfinite(np.asarray(images, np.float32)).all(axis=(1, 2, 3))
    if bad.any():
        raise UserError(f"image {int(bad.argmax())} of the batch has pixels that are not finite")


def check_budget(budget: jax.Array | float, low: float, high: float) -> None:
    """Raises UserError for a budget outside of what was calibrated; traced ones are not known and pass.

    Half a percent of slack, since the ends are themselves measured.
    """
    if isinstance(budget, jax.core.Tracer):
        return
    values = np.atleast_1d(np.asarray(budget, np.float64))
    bad = values[~((values >= low - 0.005) & (values <= high + 0.005))]
    if bad.size:
        raise UserError(
            f"budget {bad[0]:g} is outside of what was calibrated; say a share of the full network's MACs from "
            f"{low:.2f} to {high:.2f}"
        )
