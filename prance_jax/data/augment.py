"""Augments batches on the device by the DeiT recipe (Touvron et al. 2021).

The order is that of the recipe: crop, flip, RandAugment or colour jitter, normalisation, random
erasing, mixup or cutmix. All functions are pure, with static shapes; randomness comes from the key
alone. Images are float32 [B, S, S, C] in [0, 1] until they are normalised.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import jax
import jax.numpy as jnp

from prance_jax.core.errors import UserError
from prance_jax.core.fields import Batch, Decay, Fraction, Index, Range, Share, Weight, check_fields
from prance_jax.data import crops
from prance_jax.data.rand_augment import brightness, color, contrast, rand_augment

Normalise = Callable[[jax.Array], jax.Array]


@dataclass(frozen=True)
class AugmentConfig:
    """Strength of each augmentation; all are off by default.

    Attributes:
      crop: 'none', 'pad' (shifted by up to `pad` pixels over zeros, the CIFAR recipe) or 'resized'
        (a random box, resized to the image, the Inception recipe).
      pad: largest shift of 'pad', in pixels.
      min_area: smallest share of the image that 'resized' keeps.
      flip: whether half of the images are flipped left to right.
      rand_augment: RandAugment operations per image, each applied with probability 1/2.
      magnitude: mean magnitude of RandAugment, 0 to 10; its standard deviation is 0.5.
      jitter: strength of brightness, contrast and colour changes, in [0, 1); not with RandAugment.
      erase: share of images in which a random box becomes noise.
      mixup: parameter of mixup's beta distribution; 0 is off.
      cutmix: the same of cutmix. With both, each batch uses one of them at random.
      repeats: augmented copies of an image in a batch.
    """

    crop: Literal["none", "pad", "resized"] = "none"
    pad: Annotated[int, Range(0, 2**13)] = 4
    min_area: Share = 0.08
    flip: bool = False
    rand_augment: Index = 0
    magnitude: Annotated[float, Range(0, 10)] = 9.0
    jitter: Decay = 0.0
    erase: Fraction = 0.0
    mixup: Weight = 0.0
    cutmix: Weight = 0.0
    repeats: Batch = 1

    def __post_init__(self):
        check_fields(self, "augment")
        if self.rand_augment and self.jitter:
            raise UserError("augment: rand_augment changes colours already; leave out jitter")

    @property
    def plain(self) -> AugmentConfig:
        """The config with crop and flip alone, so that each image has one label."""
        return AugmentConfig(crop=self.crop, pad=self.pad, min_area=self.min_area, flip=self.flip)

    @property
    def cropped(self) -> AugmentConfig:
        """The config without the crop, for images that were cropped when they were decoded."""
        return replace(self, crop="none")


def augment(
    config: AugmentConfig,
    images: jax.Array,
    labels: jax.Array,
    key: jax.Array,
    normalise: Normalise,
    num_classes: int,
) -> tuple[jax.Array, jax.Array]:
    """Augments and normalises a batch.

    Args:
      config: strength of each augmentation.
      images: float32 [B, S, S, C] in [0, 1].
      labels: int32 [B], or [B, num_classes] of zeros and ones.
      key: random key.
      normalise: function that normalises images in [0, 1].
      num_classes: number of classes.

    Returns:
      Normalised images, and labels: unchanged, or float32 [B, num_classes] after mixing.

    Raises:
      UserError: RandAugment or jitter is on and the images do not have three channels, or images
        with several labels would be mixed.
    """
    if (config.mixup or config.cutmix) and labels.ndim == 2:
        raise UserError("mixup and cutmix need one label per image; set data.augment.mixup and cutmix to 0")
    if (config.rand_augment or config.jitter) and images.shape[-1] != 3:
        raise UserError(f"RandAugment and jitter need 3 channels; these images have {images.shape[-1]}")
    keys = jax.random.split(key, 6)
    image_keys = lambda number: jax.random.split(keys[number], images.shape[0])
    if config.crop == "pad":
        images = jax.vmap(functools.partial(padded_crop, pad=config.pad))(images, image_keys(0))
    elif config.crop == "resized":
        crop = functools.partial(resized_crop, min_area=config.min_area)
        images = jax.vmap(crop)(images, image_keys(0))
    if config.flip:
        flips = jax.random.bernoulli(keys[1], shape=(images.shape[0], 1, 1, 1))
        images = jnp.where(flips, images[:, :, ::-1], images)
    if config.rand_augment:
        apply = functools.partial(rand_augment, operations=config.rand_augment, magnitude=config.magnitude)
        images = jax.vmap(apply)(images, image_keys(2))
    elif config.jitter:
        images = jax.vmap(functools.partial(jitter, strength=config.jitter))(images, image_keys(2))
    images = normalise(images)
    if config.erase:
        images = jax.vmap(functools.partial(erase, probability=config.erase))(images, image_keys(3))
    if config.mixup or config.cutmix:
        images, labels = mix(images, labels, keys[4], config.mixup, config.cutmix, num_classes)
    return images, labels


def padded_crop(image: jax.Array, key: jax.Array, pad: int) -> jax.Array:
    """Shifts an image by up to `pad` pixels in each direction and fills with zeros.

    Args:
      image: float32 [S, S, C].
      key: random key.
      pad: largest shift in pixels.

    Returns:
      float32 [S, S, C].
    """
    padded = jnp.pad(image, ((pad, pad), (pad, pad), (0, 0)))
    top, left = jax.random.randint(key, (2,), 0, 2 * pad + 1, dtype=jnp.int32)
    return jax.lax.dynamic_slice(padded, (top, left, 0), image.shape)


def resized_crop(image: jax.Array, key: jax.Array, min_area: float) -> jax.Array:
    """Crops a random box (`crops.random_resized`) and resizes it, bilinear and antialiased.

    Args:
      image: float32 [S, S, C].
      key: random key.
      min_area: smallest share of the area that the box has.

    Returns:
      float32 [S, S, C].
    """
    height, width, _ = image.shape
    uniform = jax.random.uniform(key, (crops.TRIES, 4), dtype=jnp.float32)
    box = crops.random_resized(uniform, height, width, min_area)
    scale = jnp.stack([height / box.height, width / box.width]).astype(jnp.float32)
    shift = -jnp.stack([box.top, box.left]).astype(jnp.float32) * scale
    return jax.image.scale_and_translate(image, image.shape, (0, 1), scale, shift, "linear", antialias=True)


def jitter(image: jax.Array, key: jax.Array, strength: float) -> jax.Array:
    """Changes brightness, contrast and colour, each by a factor in [1 - strength, 1 + strength].

    Args:
      image: float32 [S, S, 3] in [0, 1].
      key: random key.
      strength: largest change of a factor.

    Returns:
      float32 [S, S, 3] in [0, 1].
    """
    factors = jax.random.uniform(key, (3,), minval=1 - strength, maxval=1 + strength, dtype=jnp.float32)
    for change, factor in zip((brightness, contrast, color), factors):
        image = change(image, factor)
    return image


def erase(image: jax.Array, key: jax.Array, probability: float) -> jax.Array:
    """Replaces a random box of an image by noise N(0, 1).

    The box has 2 to 33 % of the area and an aspect ratio between 0.3 and 1 / 0.3. The first of ten
    random boxes that fits is used; if none fits, the image is unchanged.

    Args:
      image: float32 [S, S, C], normalised.
      key: random key.
      probability: with which the box is erased.

    Returns:
      float32 [S, S, C].

    Reference: Random Erasing Data Augmentation (Zhong et al. 2017), arXiv 1708.04896.
    """
    height, width, _ = image.shape
    apply_key, box_key, noise_key = jax.random.split(key, 3)
    uniform = jax.random.uniform(box_key, (crops.TRIES, 4), dtype=jnp.float32)
    area = height * width * (0.02 + (0.33 - 0.02) * uniform[:, 0])
    shape = jnp.exp(jnp.log(jnp.float32(0.3)) * (1 - 2 * uniform[:, 1]))
    heights, widths = jnp.round(jnp.sqrt(area * shape)), jnp.round(jnp.sqrt(area / shape))
    fits = (heights < height) & (widths < width)
    top = jnp.floor(uniform[:, 2] * (height - heights + 1))
    left = jnp.floor(uniform[:, 3] * (width - widths + 1))
    first = jnp.argmax(fits)
    in_box = _box_mask(height, width, top[first], left[first], heights[first], widths[first])
    is_erased = jnp.any(fits) & jax.random.bernoulli(apply_key, jnp.float32(probability))
    return jnp.where(
        (in_box & is_erased)[..., None], jax.random.normal(noise_key, image.shape, dtype=jnp.float32), image
    )


def mix(
    images: jax.Array, labels: jax.Array, key: jax.Array, mixup: float, cutmix: float, num_classes: int
) -> tuple[jax.Array, jax.Array]:
    """Mixes image i of the batch with image B - 1 - i, in one proportion for the whole batch.

    Mixup blends the two images. Cutmix pastes a box of the other image; the area of the box, after
    clipping at the border, is the share of the other label.

    Args:
      images: float32 [B, S, S, C], normalised.
      labels: int32 [B].
      key: random key.
      mixup: parameter of mixup's beta distribution; 0 is off.
      cutmix: the same of cutmix. With both, one of them is used at random.
      num_classes: number of classes.

    Returns:
      Mixed images, and float32 [B, num_classes], the share of each label.

    Reference: mixup (Zhang et al. 2018), arXiv 1710.09412; CutMix (Yun et al. 2019), arXiv
      1905.04899.
    """
    method_key, share_key, box_key = jax.random.split(key, 3)
    use_cutmix = jax.random.bernoulli(method_key) if mixup and cutmix else jnp.asarray(cutmix > 0)
    alpha = jnp.where(use_cutmix, cutmix or 1.0, mixup or 1.0)
    share = jax.random.beta(share_key, alpha, alpha, dtype=jnp.float32)
    _, height, width, _ = images.shape
    half = jnp.sqrt(1 - share) / 2
    centre = jax.random.uniform(box_key, (2,), dtype=jnp.float32)
    edges = lambda middle, side: (
        jnp.clip(jnp.round((middle - half) * side), 0, side),
        jnp.clip(jnp.round((middle + half) * side), 0, side),
    )
    (top, bottom), (left, right) = edges(centre[0], height), edges(centre[1], width)
    in_box = _box_mask(height, width, top, left, bottom - top, right - left)[None, ..., None]
    share_outside_box = 1 - (bottom - top) * (right - left) / (height * width)
    other = images[::-1]
    mixed = jnp.where(use_cutmix, jnp.where(in_box, other, images), share * images + (1 - share) * other)
    share = jnp.where(use_cutmix, share_outside_box, share)
    one_hot = jax.nn.one_hot(labels, num_classes, dtype=jnp.float32)
    return mixed, share * one_hot + (1 - share) * one_hot[::-1]


def _box_mask(height: int, width: int, top, left, box_height, box_width) -> jax.Array:
    """Returns bool [height, width]: whether a pixel is in the box."""
    rows, columns = jnp.arange(height, dtype=jnp.int32)[:, None], jnp.arange(width, dtype=jnp.int32)[None, :]
    return (rows >= top) & (rows < top + box_height) & (columns >= left) & (columns < left + box_width)
