"""Draws cluttered digits on the device.

A glyph is pasted by two small products, rows @ glyph @ columns^T, whose bilinear weights follow from its position and
scale. There is no gather and no shape that depends on data.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from prance_jax.core.errors import UserError

GLYPH = 8
"""Side of a source digit, in its own pixels."""

MASK_INK = 0.4
"""Least ink, of a glyph drawn at full strength, at which a pixel belongs to its digit."""


@dataclass(frozen=True)
class DigitsConfig:
    """How images are drawn. Lengths are in canvas pixels unless said otherwise.

    canvas: side of an image. min_scale, max_scale: side of the digit's 8x8 glyph (its ink is a little smaller).
    max_clutter: most fragments in an image; the count is uniform on 0 .. max_clutter.
    min_crop, max_crop: sides of a fragment, in glyph pixels, drawn apart for height and width.
    grid: the digit's upper left corner lies on multiples of this; 0: anywhere (about twice as long to learn). Fragments
    lie anywhere.
    stretch: height and width of a glyph each vary by a factor in [1 - stretch, 1 + stretch].
    min_ink: ink of glyphs and fragments is multiplied by a factor in [min_ink, 1].
    clutter_ink: a further factor on the ink of fragments.
    train_digits, validation_digits: source digits of these splits; the test split takes the rest.
    validation_images, test_images: sizes of the fixed sets, in which every source digit appears equally often
    (up to one). seed: of the division into splits and of the fixed sets.
    """

    canvas: int = 28
    min_scale: float = 10.0
    max_scale: float = 14.0
    max_clutter: int = 8
    min_crop: int = 3
    max_crop: int = 4
    grid: int = 0
    stretch: float = 0.1
    min_ink: float = 0.75
    clutter_ink: float = 1.0
    train_digits: int = 1197
    validation_digits: int = 200
    validation_images: int = 2000
    test_images: int = 2000
    seed: int = 0

    def __post_init__(self):
        largest = self.max_scale * (1 + self.stretch)
        if not 0 <= self.stretch < 1:
            raise UserError(f"digits.stretch is {self.stretch}; it must be in [0, 1)")
        if not 0 < self.min_scale <= self.max_scale:
            raise UserError(
                f"digits: 0 < min_scale <= max_scale is needed, not {self.min_scale}, {self.max_scale}"
            )
        if largest > self.canvas:
            raise UserError(
                f"digits: a digit of max_scale {self.max_scale} stretched by {self.stretch} does not fit on a canvas "
                f"of {self.canvas}; use a canvas of at least {int(np.ceil(largest))}"
            )
        if not 1 <= self.min_crop <= self.max_crop <= GLYPH:
            raise UserError(
                f"digits: 1 <= min_crop <= max_crop <= {GLYPH} is needed, not {self.min_crop}, {self.max_crop}"
            )
        if not 0 <= self.grid <= self.canvas:
            raise UserError(
                f"digits.grid is {self.grid}; it must be 0 (anywhere) or up to the canvas of {self.canvas}"
            )
        if self.max_clutter < 0:
            raise UserError(f"digits.max_clutter is {self.max_clutter}; it must be 0 or more")
        if not (0 < self.min_ink <= 1 and 0 < self.clutter_ink <= 1):
            raise UserError(
                f"digits: min_ink {self.min_ink} and clutter_ink {self.clutter_ink} must be in (0, 1]"
            )
        if min(self.validation_images, self.test_images) < 1:
            raise UserError("digits: validation_images and test_images must be 1 or more")


class Glyphs(NamedTuple):
    """Source digits of one split. pixels: [M, 8, 8] float32 in [0, 1]. labels: [M] int32."""

    pixels: np.ndarray | jax.Array
    labels: np.ndarray | jax.Array


class Placement(NamedTuple):
    """Where pieces of glyphs go; every field is [..., P], P pieces an image.

    start, size: [..., P, 2] for (row, column): canvas coordinate of the glyph's upper left corner, and side that
    the whole 8x8 glyph would have. first, last: [..., P, 2]: glyph rows and columns shown, `last` excluded.
    ink: factor of the piece; 0 hides it.
    """

    start: jax.Array
    size: jax.Array
    first: jax.Array
    last: jax.Array
    ink: jax.Array


class Drawing(NamedTuple):
    """images: [B, S, S, 1] float32 in [0, 1]; labels, clutter (fragments in the image), glyph (index): [B] int32."""

    images: jax.Array
    labels: jax.Array
    clutter: jax.Array
    glyph: jax.Array


def axis_weights(
    start: jax.Array, size: jax.Array, first: jax.Array, last: jax.Array, canvas: int
) -> jax.Array:
    """Bilinear weights along one axis: [...] each -> [..., canvas, 8].

    Canvas pixel p shows the glyph at coordinate (p + 1/2 - start) x 8 / size - 1/2; beyond the glyph is nothing (0),
    so edges fade over one glyph pixel. Glyph pixels outside [first, last) weigh nothing.
    """
    pixel = jnp.arange(canvas, dtype=jnp.float32)[:, None] + 0.5
    cell = jnp.arange(GLYPH, dtype=jnp.float32)
    start, size, first, last = (value[..., None, None] for value in (start, size, first, last))
    at = (pixel - start) * (GLYPH / size) - 0.5
    shown = (cell >= first) & (cell < last)
    return jnp.where(shown, jnp.maximum(0.0, 1.0 - jnp.abs(at - cell)), 0.0)


def paste(pixels: jax.Array, placement: Placement, canvas: int) -> jax.Array:
    """Draws P pieces on an empty canvas, ink adding up to at most 1: pixels [B, P, 8, 8] -> [B, canvas, canvas]."""
    axes = [
        axis_weights(*(field_[..., axis] for field_ in placement[:4]), canvas) for axis in (0, 1)
    ]  # [B, P, canvas, 8]
    rows, columns = axes
    batch, pieces = placement.ink.shape
    high = jax.lax.Precision.HIGHEST  # accelerators would round ink to 8 or 10 bits
    strips = jnp.einsum("bpij,bpxj->bpix", pixels * placement.ink[..., None, None], columns, precision=high)
    # Summing over pieces and glyph rows at once is one product per image.
    strips = strips.reshape(batch, pieces * GLYPH, canvas)
    rows = jnp.moveaxis(rows, 2, 1).reshape(batch, canvas, pieces * GLYPH)
    return jnp.minimum(jnp.matmul(rows, strips, precision=high), 1.0)


def sample_placement(config: DigitsConfig, key: jax.Array, batch: int) -> tuple[Placement, jax.Array]:
    """Draws where everything goes: a placement of [batch, 1 + max_clutter] pieces (the digit first) and the number
    of fragments [batch] int32. Every piece lies wholly on the canvas."""
    pieces = 1 + config.max_clutter
    keys = jax.random.split(key, 7)
    scale = jax.random.uniform(keys[0], (batch, pieces, 1), minval=config.min_scale, maxval=config.max_scale)
    size = scale * jax.random.uniform(
        keys[1], (batch, pieces, 2), minval=1 - config.stretch, maxval=1 + config.stretch
    )
    crop = jax.random.randint(keys[2], (batch, pieces, 2), config.min_crop, config.max_crop + 1)
    crop = crop.at[:, 0].set(GLYPH).astype(jnp.float32)
    first = jnp.floor(jax.random.uniform(keys[3], (batch, pieces, 2)) * (GLYPH - crop + 1))
    extent = crop * size / GLYPH
    anywhere = jax.random.uniform(keys[4], (batch, pieces, 2))
    corner = anywhere * (config.canvas - extent)
    if config.grid:
        places = jnp.floor((config.canvas - extent[:, 0]) / config.grid) + 1
        corner = corner.at[:, 0].set(jnp.floor(anywhere[:, 0] * places) * config.grid)
    ink = jax.random.uniform(keys[5], (batch, pieces), minval=config.min_ink, maxval=1.0)
    clutter = jax.random.randint(keys[6], (batch,), 0, pieces)
    ink = ink.at[:, 1:].multiply(config.clutter_ink)
    ink = jnp.where(jnp.arange(pieces) <= clutter[:, None], ink, 0.0)
    return Placement(corner - first * size / GLYPH, size, first, first + crop, ink), clutter


def draw_digits(
    config: DigitsConfig, glyphs: Glyphs, key: jax.Array, batch: int, digit: jax.Array | None = None
) -> Drawing:
    """Draws a batch. `digit`: [batch] indices into `glyphs` of the digits to show; drawn uniformly where None.

    Fragments come from any glyph but the digit itself. Pure, and deterministic in the key.
    """
    return _pieces(config, glyphs, key, batch, digit)[0]


def draw_with_mask(
    config: DigitsConfig, glyphs: Glyphs, key: jax.Array, batch: int, digit: jax.Array | None = None
) -> tuple[Drawing, jax.Array]:
    """The same batch, and where its digits are: int32 [batch, S, S], 1 + the class where the digit's own ink is at least
    `MASK_INK`, whatever lies over it, else 0."""
    drawing, pixels, placement = _pieces(config, glyphs, key, batch, digit)
    first = jax.tree.map(lambda leaf: leaf[:, :1], placement)
    ink = paste(pixels[:, :1], first._replace(ink=jnp.ones_like(first.ink)), config.canvas)
    return drawing, jnp.where(ink >= MASK_INK, 1 + drawing.labels[:, None, None], 0)


def _pieces(
    config: DigitsConfig, glyphs: Glyphs, key: jax.Array, batch: int, digit: jax.Array | None
) -> tuple[Drawing, jax.Array, Placement]:
    digit_key, other_key, place_key = jax.random.split(key, 3)
    count = glyphs.labels.shape[0]
    if digit is None:
        digit = jax.random.randint(digit_key, (batch,), 0, count)
    step = jax.random.randint(other_key, (batch, config.max_clutter), 1, count)
    others = (digit[:, None] + step) % count
    placement, clutter = sample_placement(config, place_key, batch)
    pixels = jnp.asarray(glyphs.pixels)[jnp.concatenate([digit[:, None], others], axis=1)]
    images = paste(pixels, placement, config.canvas)[..., None]
    labels = jnp.asarray(glyphs.labels)[digit]
    drawing = Drawing(images, labels.astype(jnp.int32), clutter.astype(jnp.int32), digit.astype(jnp.int32))
    return drawing, pixels, placement
