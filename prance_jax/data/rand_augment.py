"""RandAugment on the device: fifteen operations on one image, float32 [S, S, 3] in [0, 1].

Strength grows with the magnitude, 0 to 10, as in the recipe that DeiT uses
("rand-m9-mstd0.5-inc1"). Operations that Pillow computes in whole 8-bit values use whole 8-bit
values here.

Reference: RandAugment (Cubuk et al. 2020), arXiv 1909.13719.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

GREY = np.array([299, 587, 114], np.float32) / 1000
FILL = np.array([124, 116, 104], np.float32) / 255
"""Colour of pixels from outside the image: the mean colour of ImageNet."""


def rand_augment(image: jax.Array, key: jax.Array, operations: int, magnitude: float) -> jax.Array:
    """Applies random operations one after another, each with probability 1/2.

    Under `vmap` all colour operations are computed, but only one geometric operation: those differ
    in their matrix alone.

    Args:
      image: float32 [S, S, 3] in [0, 1].
      key: random key.
      operations: number of operations.
      magnitude: mean strength, 0 to 10; the standard deviation is 0.5.

    Returns:
      float32 [S, S, 3] in [0, 1].
    """
    for operation_key in jax.random.split(key, operations):
        number_key, apply_key, strength_key, sign_key = jax.random.split(operation_key, 4)
        strength = jnp.clip(magnitude + 0.5 * jax.random.normal(strength_key, dtype=jnp.float32), 0, 10) / 10
        sign = jnp.where(jax.random.bernoulli(sign_key), jnp.float32(1), jnp.float32(-1))
        number = jax.random.randint(number_key, (), 0, len(COLOURS) + len(GEOMETRY), dtype=jnp.int32)
        coloured = jax.lax.switch(number, tuple(COLOURS.values()), image, strength, sign)
        moved = affine(
            image, *jax.lax.switch(number - len(COLOURS), tuple(GEOMETRY.values()), strength * sign)
        )
        changed = jnp.where(number < len(COLOURS), coloured, moved)
        image = jnp.where(jax.random.bernoulli(apply_key), changed, image)
    return image


def autocontrast(image: jax.Array) -> jax.Array:
    """Stretches every channel to the full range."""
    low, high = image.min((0, 1)), image.max((0, 1))
    return jnp.where(high > low, (image - low) / jnp.maximum(high - low, 1e-6), image)


def equalize(image: jax.Array) -> jax.Array:
    """Flattens the histogram of every channel, as Pillow does."""

    def equalize_channel(channel):
        values = jnp.round(channel * 255).astype(jnp.int32)
        histogram = jnp.zeros(256, jnp.int32).at[values.reshape(-1)].add(1)
        # The step excludes the count of the largest value. A step below one pixel changes nothing.
        last = histogram[255 - jnp.argmax(histogram[::-1] > 0)]
        step = (histogram.sum() - last) // 255
        table = (step // 2 + jnp.cumsum(histogram) - histogram) // jnp.maximum(step, 1)
        return jnp.where(step > 0, jnp.clip(table, 0, 255)[values] / 255.0, channel)

    return jax.vmap(equalize_channel, 2, 2)(image)


def invert(image: jax.Array) -> jax.Array:
    """Inverts all values."""
    return 1 - image


def posterize(image: jax.Array, bits: jax.Array) -> jax.Array:
    """Keeps the highest bits of every 8-bit value.

    Args:
      image: float32 [S, S, 3] in [0, 1].
      bits: number of bits that are kept, 0 to 8.
    """
    step = 2.0 ** (8 - bits)
    return jnp.floor(jnp.round(image * 255) / step) * step / 255


def solarize(image: jax.Array, threshold: jax.Array) -> jax.Array:
    """Inverts values at or above a threshold.

    Args:
      image: float32 [S, S, 3] in [0, 1].
      threshold: 8-bit value, 0 to 256.
    """
    return jnp.where(jnp.round(image * 255) >= threshold, 1 - image, image)


def solarize_add(image: jax.Array, added: jax.Array) -> jax.Array:
    """Adds to the 8-bit values below 128.

    Args:
      image: float32 [S, S, 3] in [0, 1].
      added: what is added, in 8-bit values.
    """
    return jnp.where(jnp.round(image * 255) < 128, jnp.minimum(image + added / 255, 1.0), image)


def color(image: jax.Array, factor: jax.Array) -> jax.Array:
    """Changes the saturation of the colours.

    Args:
      image: float32 [S, S, 3] in [0, 1].
      factor: 0 gives a grey image, 1 the unchanged image; above 1 the difference grows.
    """
    return _blend((image @ GREY)[..., None], image, factor)


def contrast(image: jax.Array, factor: jax.Array) -> jax.Array:
    """Changes the contrast.

    Args:
      image: float32 [S, S, 3] in [0, 1].
      factor: 0 gives the mean grey of the image, 1 the unchanged image; above 1 the difference
        grows.
    """
    return _blend(jnp.round((image @ GREY).mean() * 255) / 255, image, factor)


def brightness(image: jax.Array, factor: jax.Array) -> jax.Array:
    """Changes the brightness.

    Args:
      image: float32 [S, S, 3] in [0, 1].
      factor: 0 gives black, 1 the unchanged image; above 1 the difference grows.
    """
    return _blend(0.0, image, factor)


def sharpness(image: jax.Array, factor: jax.Array) -> jax.Array:
    """Changes the sharpness.

    Args:
      image: float32 [S, S, 3] in [0, 1].
      factor: 0 gives a smoothed image (3 x 3, weight 5 in the middle, border unchanged), 1 the
        unchanged image; above 1 the difference grows.
    """
    kernel = jnp.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], jnp.float32) / 13
    smooth = lambda channel: jax.scipy.signal.convolve2d(channel, kernel, mode="valid")
    inner = jax.vmap(smooth, 2, 2)(image)
    return _blend(image.at[1:-1, 1:-1].set(inner), image, factor)


def affine(image: jax.Array, matrix: jax.Array, shift: jax.Array) -> jax.Array:
    """Moves pixels by an affine map, with bilinear interpolation.

    The pixel at position p shows position matrix @ p + shift; positions are relative to the middle.

    Args:
      image: float32 [S, S, 3] in [0, 1].
      matrix: float32 [2, 2], for (row, column).
      shift: float32 [2], for (row, column), as shares of the side.

    Returns:
      float32 [S, S, 3]; pixels from outside the image have the colour `FILL`.
    """
    height, width, _ = image.shape
    sides = jnp.array([height, width], jnp.float32)
    middle = (sides - 1) / 2
    grid = jnp.moveaxis(jnp.indices((height, width), dtype=jnp.int32), 0, -1) - middle
    source = grid @ matrix.T + middle + shift * sides
    # Positions outside the image are read from a frame of the filling colour.
    framed = jnp.pad(image - FILL, ((1, 1), (1, 1), (0, 0))) + FILL
    source = jnp.clip(source, -1.0, sides) + 1
    corner = jnp.minimum(jnp.floor(source), sides)
    down, across = (source - corner)[..., :1], (source - corner)[..., 1:]
    row, column = corner[..., 0].astype(jnp.int32), corner[..., 1].astype(jnp.int32)
    upper = (1 - across) * framed[row, column] + across * framed[row, column + 1]
    lower = (1 - across) * framed[row + 1, column] + across * framed[row + 1, column + 1]
    return (1 - down) * upper + down * lower


def rotation(degrees: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the matrix and shift of a counter-clockwise rotation about the middle."""
    angle = jnp.deg2rad(degrees)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return jnp.stack([cos, sin, -sin, cos]).reshape(2, 2).astype(jnp.float32), jnp.zeros(2, jnp.float32)


def shear(down: jax.Array | float, across: jax.Array | float) -> tuple[jax.Array, jax.Array]:
    """Returns the matrix and shift of a shear about the middle.

    Args:
      down: rows added per column.
      across: columns added per row.
    """
    return jnp.eye(2, dtype=jnp.float32).at[0, 1].set(down).at[1, 0].set(across), jnp.zeros(2, jnp.float32)


def translation(down: jax.Array | float, across: jax.Array | float) -> tuple[jax.Array, jax.Array]:
    """Returns the matrix and shift of a translation.

    Args:
      down: share of the side, in rows.
      across: share of the side, in columns.
    """
    return jnp.eye(2, dtype=jnp.float32), jnp.stack([jnp.float32(down), jnp.float32(across)])


# (image, level in 0 .. 1, sign -1 or 1) -> image.
COLOURS: dict[str, Callable[[jax.Array, jax.Array, jax.Array], jax.Array]] = {
    "autocontrast": lambda image, level, sign: autocontrast(image),
    "equalize": lambda image, level, sign: equalize(image),
    "invert": lambda image, level, sign: invert(image),
    "posterize": lambda image, level, sign: posterize(image, 4 - jnp.floor(4 * level)),
    "solarize": lambda image, level, sign: solarize(image, 256 - jnp.floor(256 * level)),
    "solarize_add": lambda image, level, sign: solarize_add(image, jnp.floor(110 * level)),
    "color": lambda image, level, sign: color(image, 1 + 0.9 * level * sign),
    "contrast": lambda image, level, sign: contrast(image, 1 + 0.9 * level * sign),
    "brightness": lambda image, level, sign: brightness(image, 1 + 0.9 * level * sign),
    "sharpness": lambda image, level, sign: sharpness(image, 1 + 0.9 * level * sign),
}
# Level in -1 .. 1 -> matrix and shift of `affine`.
GEOMETRY: dict[str, Callable[[jax.Array], tuple[jax.Array, jax.Array]]] = {
    "rotate": lambda level: rotation(30 * level),
    "shear_x": lambda level: shear(0.0, 0.3 * level),
    "shear_y": lambda level: shear(0.3 * level, 0.0),
    "translate_x": lambda level: translation(0.0, 0.45 * level),
    "translate_y": lambda level: translation(0.45 * level, 0.0),
}


def _blend(other: jax.Array | float, image: jax.Array, factor: jax.Array) -> jax.Array:
    """Returns `other` at factor 0 and the image at factor 1; above 1 the difference grows."""
    return jnp.clip(other + factor * (image - other), 0.0, 1.0)
