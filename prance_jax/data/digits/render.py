"""Draws cluttered digits on the device.

A glyph is pasted by two small products, rows @ glyph @ columns^T, whose bilinear weights follow
from its position and scale. There is no gather and no shape that depends on data.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from prance_jax.core.errors import UserError
from prance_jax.core.fields import Decay, Index, PoolSize, Positive, Range, Seed, Share, Side, check_fields

NUM_DIGITS = 1797
"""Number of source digits."""

GLYPH = 8
"""Side of a source digit, in its own pixels."""

MASK_INK = 0.4
"""Smallest ink, of a glyph drawn at full strength, at which a pixel belongs to its digit."""


@dataclass(frozen=True)
class DigitsConfig:
    """How images are drawn. Lengths are in canvas pixels unless noted.

    In a fixed set every source digit appears equally often, up to one.

    Attributes:
      canvas: side of an image.
      min_scale: smallest side of the digit's 8x8 glyph; its ink is a little smaller.
      max_scale: largest side of the glyph.
      max_clutter: largest number of fragments; the number is uniform on 0 .. max_clutter.
      min_crop: smallest height and width of a fragment, in glyph pixels.
      max_crop: largest height and width, drawn separately.
      grid: the digit's upper left corner lies on multiples of this; 0: anywhere, which takes about
        twice as long to learn. Fragments lie anywhere.
      stretch: height and width of a glyph each vary by a factor in [1 - stretch, 1 + stretch].
      min_ink: the ink of a piece is multiplied by a factor in [min_ink, 1].
      clutter_ink: another factor on the ink of fragments.
      train_digits: source digits of the training split.
      validation_digits: source digits of the validation split; the test split has all others.
      validation_images: size of the fixed validation set.
      test_images: size of the fixed test set.
      seed: of the splits and of the fixed sets.
    """

    canvas: Side = 28
    min_scale: Positive = 10.0
    max_scale: Positive = 14.0
    max_clutter: Index = 8
    min_crop: Annotated[int, Range(1, GLYPH)] = 3
    max_crop: Annotated[int, Range(1, GLYPH)] = 4
    grid: Annotated[int, Range(0, 2**13)] = 0
    stretch: Decay = 0.1
    min_ink: Share = 0.75
    clutter_ink: Share = 1.0
    train_digits: Annotated[int, Range(20, NUM_DIGITS - 40)] = 1197
    validation_digits: Annotated[int, Range(20, NUM_DIGITS - 40)] = 200
    validation_images: PoolSize = 2000
    test_images: PoolSize = 2000
    seed: Seed = 0

    def __post_init__(self):
        check_fields(self, "digits")
        largest = self.max_scale * (1 + self.stretch)
        if self.min_scale > self.max_scale:
            raise UserError(
                f"digits: expected min_scale <= max_scale, not {self.min_scale}, {self.max_scale}"
            )
        if largest > self.canvas:
            raise UserError(
                f"digits: a digit of max_scale {self.max_scale} stretched by {self.stretch} does not fit on "
                f"a canvas of {self.canvas}; use a canvas of at least {int(np.ceil(largest))}"
            )
        if self.min_crop > self.max_crop:
            raise UserError(f"digits: expected min_crop <= max_crop, not {self.min_crop}, {self.max_crop}")
        if self.train_digits + self.validation_digits > NUM_DIGITS - 20:
            raise UserError(
                f"digits: train_digits {self.train_digits} and validation_digits {self.validation_digits} must "
                f"leave 20 or more of the {NUM_DIGITS} digits for the test split"
            )
        if self.grid > self.canvas:
            raise UserError(
                f"digits.grid is {self.grid}; it must be 0 (anywhere) or up to the canvas of {self.canvas}"
            )


class Glyphs(NamedTuple):
    """Source digits of one split.

    Attributes:
      pixels: float32 [M, 8, 8] in [0, 1].
      labels: int32 [M].
    """

    pixels: np.ndarray | jax.Array
    labels: np.ndarray | jax.Array


class Placement(NamedTuple):
    """Where the P pieces of glyphs lie in an image.

    Attributes:
      start: float32 [..., P, 2], (row, column) of the whole glyph's upper left corner on the
        canvas.
      size: float32 [..., P, 2], height and width of the whole 8x8 glyph on the canvas.
      first: float32 [..., P, 2], first glyph row and column that is shown.
      last: float32 [..., P, 2], end of the shown rows and columns, exclusive.
      ink: float32 [..., P], factor on the ink; 0 hides a piece.
    """

    start: jax.Array
    size: jax.Array
    first: jax.Array
    last: jax.Array
    ink: jax.Array


class Drawing(NamedTuple):
    """A batch of cluttered digits.

    Attributes:
      images: float32 [B, S, S, 1] in [0, 1].
      labels: int32 [B].
      clutter: int32 [B], number of fragments.
      glyph: int32 [B], index of the source digit.
    """

    images: jax.Array
    labels: jax.Array
    clutter: jax.Array
    glyph: jax.Array


def axis_weights(
    start: jax.Array, size: jax.Array, first: jax.Array, last: jax.Array, canvas: int
) -> jax.Array:
    """Returns the bilinear weights of glyph pixels along one axis.

    Canvas pixel p shows the glyph at coordinate (p + 1/2 - start) x 8 / size - 1/2. Ink outside the
    glyph is 0, so edges fade over one glyph pixel. Glyph pixels outside [first, last) have weight
    0.

    Args:
      start: float32 [...], see `Placement`.
      size: float32 [...].
      first: float32 [...].
      last: float32 [...].
      canvas: side of the canvas in pixels.

    Returns:
      float32 [..., canvas, 8].
    """
    pixel = jnp.arange(canvas, dtype=jnp.float32)[:, None] + 0.5
    cell = jnp.arange(GLYPH, dtype=jnp.float32)
    start, size, first, last = (value[..., None, None] for value in (start, size, first, last))
    position = (pixel - start) * (GLYPH / size) - 0.5
    is_shown = (cell >= first) & (cell < last)
    return jnp.where(is_shown, jnp.maximum(0.0, 1.0 - jnp.abs(position - cell)), 0.0)


def paste(pixels: jax.Array, placement: Placement, canvas: int) -> jax.Array:
    """Draws P pieces on an empty canvas; their ink adds up, to at most 1.

    Args:
      pixels: float32 [B, P, 8, 8], one glyph for each piece.
      placement: where the pieces lie, [B, P].
      canvas: side of the canvas in pixels.

    Returns:
      float32 [B, canvas, canvas] in [0, 1].
    """
    # Each float32 [B, P, canvas, 8].
    rows, columns = (
        axis_weights(*(values[..., axis] for values in placement[:4]), canvas) for axis in (0, 1)
    )
    batch, pieces = placement.ink.shape
    high = jax.lax.Precision.HIGHEST  # by default accelerators round ink to 8 or 10 bits
    strips = jnp.einsum("bpij,bpxj->bpix", pixels * placement.ink[..., None, None], columns, precision=high)
    # Summing over pieces and glyph rows at once is one product per image.
    strips = strips.reshape(batch, pieces * GLYPH, canvas)
    rows = jnp.moveaxis(rows, 2, 1).reshape(batch, canvas, pieces * GLYPH)
    return jnp.minimum(jnp.matmul(rows, strips, precision=high), 1.0)


def sample_placement(config: DigitsConfig, key: jax.Array, batch: int) -> tuple[Placement, jax.Array]:
    """Draws where the digit and its fragments lie; every piece is wholly on the canvas.

    Args:
      config: how images are drawn.
      key: random key.
      batch: number of images.

    Returns:
      A placement of [batch, 1 + max_clutter] pieces, the digit first, and the number of fragments,
      int32 [batch].
    """
    pieces = 1 + config.max_clutter
    keys = jax.random.split(key, 7)
    scale = jax.random.uniform(
        keys[0], (batch, pieces, 1), minval=config.min_scale, maxval=config.max_scale, dtype=jnp.float32
    )
    size = scale * jax.random.uniform(
        keys[1], (batch, pieces, 2), minval=1 - config.stretch, maxval=1 + config.stretch, dtype=jnp.float32
    )
    crop = jax.random.randint(
        keys[2], (batch, pieces, 2), config.min_crop, config.max_crop + 1, dtype=jnp.int32
    )
    crop = crop.at[:, 0].set(GLYPH).astype(jnp.float32)
    first = jnp.floor(jax.random.uniform(keys[3], (batch, pieces, 2), dtype=jnp.float32) * (GLYPH - crop + 1))
    piece_size = crop * size / GLYPH
    uniform = jax.random.uniform(keys[4], (batch, pieces, 2), dtype=jnp.float32)
    corner = uniform * (config.canvas - piece_size)
    if config.grid:
        positions = jnp.floor((config.canvas - piece_size[:, 0]) / config.grid) + 1
        corner = corner.at[:, 0].set(jnp.floor(uniform[:, 0] * positions) * config.grid)
    ink = jax.random.uniform(keys[5], (batch, pieces), minval=config.min_ink, maxval=1.0, dtype=jnp.float32)
    clutter = jax.random.randint(keys[6], (batch,), 0, pieces, dtype=jnp.int32)
    ink = ink.at[:, 1:].multiply(config.clutter_ink)
    ink = jnp.where(jnp.arange(pieces, dtype=jnp.int32) <= clutter[:, None], ink, 0.0)
    return Placement(corner - first * size / GLYPH, size, first, first + crop, ink), clutter


def draw_digits(
    config: DigitsConfig, glyphs: Glyphs, key: jax.Array, batch: int, digit: jax.Array | None = None
) -> Drawing:
    """Draws a batch of cluttered digits.

    Fragments come from any glyph but the digit itself. Pure: the same key gives the same batch.

    Args:
      config: how images are drawn.
      glyphs: source digits.
      key: random key.
      batch: number of images; static under `jit`.
      digit: int32 [batch], indices into `glyphs` of the digits; None draws them uniformly.
    """
    return _draw(config, glyphs, key, batch, digit)[0]


def draw_with_mask(
    config: DigitsConfig, glyphs: Glyphs, key: jax.Array, batch: int, digit: jax.Array | None = None
) -> tuple[Drawing, jax.Array]:
    """Draws the batch of `draw_digits` with a label for every pixel.

    Args:
      config: as for `draw_digits`.
      glyphs: as for `draw_digits`.
      key: as for `draw_digits`.
      batch: as for `draw_digits`.
      digit: as for `draw_digits`.

    Returns:
      The batch, and int32 [batch, S, S]: 1 + class where the digit's ink, without fragments, is at
      least `MASK_INK`, else 0.
    """
    drawing, pixels, placement = _draw(config, glyphs, key, batch, digit)
    digit_placement = jax.tree.map(lambda leaf: leaf[:, :1], placement)
    full_ink = digit_placement._replace(ink=jnp.ones_like(digit_placement.ink))
    ink = paste(pixels[:, :1], full_ink, config.canvas)
    return drawing, jnp.where(ink >= MASK_INK, 1 + drawing.labels[:, None, None], 0)


def _draw(
    config: DigitsConfig, glyphs: Glyphs, key: jax.Array, batch: int, digit: jax.Array | None
) -> tuple[Drawing, jax.Array, Placement]:
    """Returns the batch, the glyph pixels of its pieces [B, P, 8, 8] and their placement."""
    digit_key, other_key, placement_key = jax.random.split(key, 3)
    count = glyphs.labels.shape[0]
    if digit is None:
        digit = jax.random.randint(digit_key, (batch,), 0, count, dtype=jnp.int32)
    step = jax.random.randint(other_key, (batch, config.max_clutter), 1, count, dtype=jnp.int32)
    others = (digit[:, None] + step) % count
    placement, clutter = sample_placement(config, placement_key, batch)
    pixels = jnp.asarray(glyphs.pixels)[jnp.concatenate([digit[:, None], others], axis=1)]
    images = paste(pixels, placement, config.canvas)[..., None]
    labels = jnp.asarray(glyphs.labels)[digit]
    drawing = Drawing(images, labels.astype(jnp.int32), clutter.astype(jnp.int32), digit.astype(jnp.int32))
    return drawing, pixels, placement
