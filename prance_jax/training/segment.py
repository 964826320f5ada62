"""Segmentation on the embedded task: a dense network, then token reduction as it is and tuned."""

from __future__ import annotations

import functools
from typing import Any, Callable, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from prance_jax import losses
from prance_jax.config import FinetuneConfig
from prance_jax.data.digit_masks import DigitMasks, Scenes
from prance_jax.models.reduced import Reduction
from prance_jax.models.segmenter import Segmenter
from prance_jax.spec import ModelSpec
from prance_jax.tokens.unmerge import Fill
from prance_jax.training import optimizer

Tree = Any


def init(model: Segmenter, config: FinetuneConfig, key: jax.Array, start: Tree | None = None) -> Tree:
    """Fresh parameters, or those of `start`."""
    spec = model.spec
    if start is None:
        image = jnp.zeros((1, spec.image_size, spec.image_size, spec.channels))
        params = jax.jit(model.init)(key, image)["params"]
    else:
        params = jax.tree.map(jnp.copy, start)
    return optimizer.init(params, optimizer.make(config.optimizer, config.steps))


@functools.lru_cache(maxsize=None)
def segment_step(
    spec: ModelSpec,
    masks: DigitMasks,
    config: FinetuneConfig,
    reduction: Reduction | None,
    fill: Fill | None = "nearest",
) -> Callable:
    """Compiled (state, step, key, tables, teacher) -> (state, metrics): cross-entropy per pixel, and with a reduction,
    weighted by `config.distillation`, the divergence from the unreduced teacher's."""
    model, transform = Segmenter(spec, masks.classes), optimizer.make(config.optimizer, config.steps)

    def step(state, index, key, tables, teacher):
        scenes = masks.sample(tables, jax.random.fold_in(key, index), config.batch)
        flat = lambda logits: logits.reshape(-1, masks.classes)

        def loss(params):
            logits = flat(model.apply({"params": params}, scenes.images, reduction, fill))
            labels = scenes.masks.reshape(-1)
            if reduction is None:
                value = losses.cross_entropy(logits, labels)
            else:
                wanted = flat(model.apply({"params": teacher}, scenes.images))
                value = losses.taught(logits, labels, wanted, config.distillation)
            return value, {"accuracy": losses.accuracy(logits, labels)}

        return optimizer.update(state, index, loss, transform, config.optimizer.ema)

    return jax.jit(step, donate_argnums=0)


class Segmentation(NamedTuple):
    """miou: mean over classes of intersection over union, on all pixels together. accuracy: of pixels. each: per class."""

    miou: float
    accuracy: float
    each: np.ndarray


def evaluate(
    model: Segmenter,
    params: Tree,
    scenes: Scenes,
    reduction: Reduction | None = None,
    fill: Fill | None = "nearest",
    batch: int = 250,
) -> Segmentation:
    """Every scene once; the last batch is padded and its padding not counted."""
    run = jax.jit(
        lambda params, images: jnp.argmax(model.apply({"params": params}, images, reduction, fill), -1)
    )
    confusion = np.zeros((model.classes, model.classes), np.int64)
    for start in range(0, len(scenes.images), batch):
        images, truth = scenes.images[start : start + batch], scenes.masks[start : start + batch]
        padded = np.pad(images, [(0, batch - len(images))] + [(0, 0)] * 3)
        found = np.asarray(run(params, padded))[: len(images)]
        confusion += confusion_matrix(truth, found, model.classes)
    return from_confusion(confusion)


def confusion_matrix(truth: np.ndarray, found: np.ndarray, classes: int) -> np.ndarray:
    """int64 [classes, classes]: pixels by true class (rows) and predicted one."""
    pairs = classes * truth.reshape(-1).astype(np.int64) + found.reshape(-1)
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def from_confusion(confusion: np.ndarray) -> Segmentation:
    """Classes that neither occur nor are predicted do not count in the mean."""
    hit = np.diag(confusion).astype(float)
    union = confusion.sum(0) + confusion.sum(1) - np.diag(confusion)
    each = np.where(union > 0, hit / np.maximum(union, 1), np.nan)
    return Segmentation(float(np.nanmean(each)), float(hit.sum() / confusion.sum()), each)
