"""Augmentation on the device, a batch at a time: what the DeiT recipe does to images and labels (Touvron et al. 2021).

In the recipe's order: crop, flip, RandAugment or colour jitter, normalisation, random erasing, mixup or cutmix. All of it is
pure and of static shape; randomness comes from the key alone. Images are float32 [B, S, S, C] in [0, 1] until they are
normalised.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import jax
import jax.numpy as jnp

from prance_jax.core.errors import UserError
from prance_jax.data import crops
from prance_jax.data.rand_augment import brightness, color, contrast, rand_augment

Normalise = Callable[[jax.Array], jax.Array]


@dataclass(frozen=True)
class AugmentConfig:
    """Everything is off by default.

    crop: 'pad' moves by up to `pad` pixels over zeros (the CIFAR recipe); 'resized' cuts a random box of at least
      `min_area` of the image (Inception) and resizes it. flip: left-right, half the images.
    rand_augment: operations per image, each applied with probability 1/2 at a magnitude drawn around `magnitude`
      (of 10) with deviation 0.5. jitter: strength of brightness, contrast and colour changes; not with RandAugment.
    erase: share of images of which a random box becomes noise. mixup, cutmix: parameter of the beta distribution that mixes
      pairs; with both, one of them is drawn for the batch. repeats: augmented copies of an image in a batch.
    """

    crop: Literal["none", "pad", "resized"] = "none"
    pad: int = 4
    min_area: float = 0.08
    flip: bool = False
    rand_augment: int = 0
    magnitude: float = 9.0
    jitter: float = 0.0
    erase: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    repeats: int = 1

    def __post_init__(self):
        if not (
            0 < self.min_area <= 1
            and 0 <= self.erase <= 1
            and 0 <= self.jitter < 1
            and 0 <= self.magnitude <= 10
        ):
            raise UserError(
                "augment: min_area in (0, 1], erase in [0, 1], jitter in [0, 1) and magnitude in [0, 10] are needed, not "
                f"{self.min_area}, {self.erase}, {self.jitter}, {self.magnitude}"
            )
        if min(self.pad, self.rand_augment, self.mixup, self.cutmix) < 0 or self.repeats < 1:
            raise UserError(
                "augment: pad, rand_augment, mixup and cutmix must be 0 or more, repeats 1 or more"
            )
        if self.rand_augment and self.jitter:
            raise UserError("augment: rand_augment changes colours already; leave out jitter")

    @property
    def plain(self) -> AugmentConfig:
        """Crop and flip alone: images as the network will meet them, each with one label."""
        return AugmentConfig(crop=self.crop, pad=self.pad, min_area=self.min_area, flip=self.flip)

    @property
    def cropped(self) -> AugmentConfig:
        """The same for images that were cropped when they were decoded."""
        return replace(self, crop="none")


def augment(
    config: AugmentConfig,
    images: jax.Array,
    labels: jax.Array,
    key: jax.Array,
    normalise: Normalise,
    num_classes: int,
) -> tuple[jax.Array, jax.Array]:
    """Normalised images, and labels: int32 [B] as they came, or the mixed distribution, float32 [B, num_classes].

    images: [B, S, S, C] float32 in [0, 1]. RandAugment and jitter need three channels (UserError).
    """
    if (config.rand_augment or config.jitter) and images.shape[-1] != 3:
        raise UserError(f"RandAugment and jitter need 3 channels; these images have {images.shape[-1]}")
    keys = jax.random.split(key, 6)
    own = lambda number: jax.random.split(keys[number], images.shape[0])
    if config.crop == "pad":
        images = jax.vmap(functools.partial(padded_crop, pad=config.pad))(images, own(0))
    elif config.crop == "resized":
        images = jax.vmap(functools.partial(resized_crop, min_area=config.min_area))(images, own(0))
    if config.flip:
        flips = jax.random.bernoulli(keys[1], shape=(images.shape[0], 1, 1, 1))
        images = jnp.where(flips, images[:, :, ::-1], images)
    if config.rand_augment:
        apply = functools.partial(rand_augment, operations=config.rand_augment, magnitude=config.magnitude)
        images = jax.vmap(apply)(images, own(2))
    elif config.jitter:
        images = jax.vmap(functools.partial(jitter, strength=config.jitter))(images, own(2))
    images = normalise(images)
    if config.erase:
        images = jax.vmap(functools.partial(erase, probability=config.erase))(images, own(3))
    if config.mixup or config.cutmix:
        images, labels = mix(images, labels, keys[4], config.mixup, config.cutmix, num_classes)
    return images, labels


def padded_crop(image: jax.Array, key: jax.Array, pad: int) -> jax.Array:
    """[S, S, C] -> the same, moved by up to `pad` pixels each way, with zeros where it was not."""
    padded = jnp.pad(image, ((pad, pad), (pad, pad), (0, 0)))
    top, left = jax.random.randint(key, (2,), 0, 2 * pad + 1)
    return jax.lax.dynamic_slice(padded, (top, left, 0), image.shape)


def resized_crop(image: jax.Array, key: jax.Array, min_area: float) -> jax.Array:
    """[S, S, C] -> the same size: a random box (`crops.random_resized`), bilinear and antialiased."""
    height, width, _ = image.shape
    uniform = jax.random.uniform(key, (crops.TRIES, 4))
    top, left, tall, wide = crops.random_resized(uniform, height, width, min_area)
    scale = jnp.stack([height / tall, width / wide]).astype(jnp.float32)
    shift = -jnp.stack([top, left]).astype(jnp.float32) * scale
    return jax.image.scale_and_translate(image, image.shape, (0, 1), scale, shift, "linear", antialias=True)


def jitter(image: jax.Array, key: jax.Array, strength: float) -> jax.Array:
    """Brightness, contrast and colour, each by a factor in [1 - strength, 1 + strength]. [S, S, 3] in [0, 1]."""
    factors = jax.random.uniform(key, (3,), minval=1 - strength, maxval=1 + strength)
    for change, factor in zip((brightness, contrast, color), factors):
        image = change(image, factor)
    return image


def erase(image: jax.Array, key: jax.Array, probability: float) -> jax.Array:
    """Noise N(0, 1) in a box of 2 to 33 % of a normalised image, aspect ratio 0.3 to 1 / 0.3 (Zhong et al. 2017).

    The first of ten boxes that fits is taken; if none does the image stays as it is.
    """
    height, width, _ = image.shape
    chance, box, noise = jax.random.split(key, 3)
    uniform = jax.random.uniform(box, (crops.TRIES, 4))
    area = height * width * (0.02 + (0.33 - 0.02) * uniform[:, 0])
    shape = jnp.exp(jnp.log(0.3) * (1 - 2 * uniform[:, 1]))
    tall, wide = jnp.round(jnp.sqrt(area * shape)), jnp.round(jnp.sqrt(area / shape))
    fits = (tall < height) & (wide < width)
    top, left = jnp.floor(uniform[:, 2] * (height - tall + 1)), jnp.floor(uniform[:, 3] * (width - wide + 1))
    first = jnp.argmax(fits)
    inside = _inside(height, width, top[first], left[first], tall[first], wide[first])
    erased = jnp.any(fits) & jax.random.bernoulli(chance, probability)
    return jnp.where((inside & erased)[..., None], jax.random.normal(noise, image.shape), image)


def mix(
    images: jax.Array, labels: jax.Array, key: jax.Array, mixup: float, cutmix: float, num_classes: int
) -> tuple[jax.Array, jax.Array]:
    """Every image with the one at the other end of the batch, in one proportion for all.

    Mixup (Zhang et al. 2018) blends them, cutmix (Yun et al. 2019) pastes a box whose area, after clipping at the border, is the
    share of the other's label. Returns the images and the labels' distribution, [B, num_classes].
    """
    which, share_key, box = jax.random.split(key, 3)
    use_cutmix = jax.random.bernoulli(which) if mixup and cutmix else jnp.asarray(cutmix > 0)
    alpha = jnp.where(use_cutmix, cutmix or 1.0, mixup or 1.0)
    share = jax.random.beta(share_key, alpha, alpha)
    _, height, width, _ = images.shape
    half = jnp.sqrt(1 - share) / 2
    centre = jax.random.uniform(box, (2,))
    edges = lambda own, middle, side: (
        jnp.clip(jnp.round((middle - own) * side), 0, side),
        jnp.clip(jnp.round((middle + own) * side), 0, side),
    )
    (top, bottom), (left, right) = edges(half, centre[0], height), edges(half, centre[1], width)
    inside = _inside(height, width, top, left, bottom - top, right - left)[None, ..., None]
    pasted = 1 - (bottom - top) * (right - left) / (height * width)
    other = images[::-1]
    mixed = jnp.where(use_cutmix, jnp.where(inside, other, images), share * images + (1 - share) * other)
    share = jnp.where(use_cutmix, pasted, share)
    own = jax.nn.one_hot(labels, num_classes)
    return mixed, share * own + (1 - share) * own[::-1]


def _inside(height: int, width: int, top, left, tall, wide) -> jax.Array:
    """bool [height, width]: the pixels of a box."""
    rows, columns = jnp.arange(height)[:, None], jnp.arange(width)[None, :]
    return (rows >= top) & (rows < top + tall) & (columns >= left) & (columns < left + wide)
