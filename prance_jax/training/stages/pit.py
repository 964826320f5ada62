"""PiT in training: alone on labels, then under a teacher, as it is or with a selector in each stage."""

from __future__ import annotations

import functools
from typing import Any, Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from prance_jax.baselines.pit import PiT
from prance_jax.baselines.pit_spec import PiTSpec
from prance_jax.config.comparison import PredictorLossConfig
from prance_jax.config.stages import FinetuneConfig
from prance_jax.core import losses
from prance_jax.core.sharding import constrain_batch, jit_step
from prance_jax.data.source import Split
from prance_jax.training import optimizer
from prance_jax.training.stages.baseline_finetune import predictor_loss
from prance_jax.training.stages.pretrain import Sample

Tree = Any


def init_pit(spec: PiTSpec, config: FinetuneConfig, key: jax.Array, start: Tree | None = None) -> Tree:
    """Fresh parameters; those of `start` in their place where it has them (the selectors' it has not)."""
    params = {**_fresh(spec)(key), **jax.tree.map(jnp.copy, start or {})}
    return optimizer.init_state(params, optimizer.make_optimizer(config.optimizer, config.steps))


@functools.lru_cache(maxsize=None)
def _fresh(spec: PiTSpec) -> Callable:
    """Compiled (key) -> parameters."""
    image = jnp.zeros((1, spec.image_size, spec.image_size, spec.channels))
    return jax.jit(lambda key: PiT(spec).init(key, image)["params"])


@functools.lru_cache(maxsize=None)
def pit_step(
    spec: PiTSpec,
    config: FinetuneConfig,
    predictor: PredictorLossConfig,
    sample: Sample,
    mesh: Mesh | None = None,
) -> Callable:
    """Compiled (state, step, key, tables, teacher) -> (state, metrics).

    Without a teacher the loss is cross-entropy, of the plain network; a teacher (the plain network's parameters) adds the
    divergence from it, weighted by `config.distillation`, and where there are selectors `selection_loss`; metrics kept_0,
    kept_1, ... are then the shares that stay in each stage.
    """
    model, plain, transform = (
        PiT(spec),
        PiT(spec.plain),
        optimizer.make_optimizer(config.optimizer, config.steps),
    )

    def step(state, index, key, tables, teacher=None):
        data_key, draw_key = jax.random.split(jax.random.fold_in(key, index))
        images, labels = constrain_batch(mesh, sample(tables, data_key, config.batch))

        def loss(params):
            if teacher is None:
                logits = plain.apply({"params": params}, images)
                value = losses.cross_entropy(logits, labels, config.label_smoothing)
                return value, {"accuracy": losses.accuracy(logits, labels)}
            wanted, patches = plain.apply({"params": teacher}, images, method="features")
            extra, shares = 0.0, {}
            if spec.predictor_blocks:
                out = model.apply({"params": params}, images, draw_key, method="train")
                logits, extra = out.logits, predictor_loss(spec.keep_rates, predictor, out, patches)
                shares = {
                    f"kept_{stage}": out.kept[:, stage].mean() for stage in range(len(spec.predictor_blocks))
                }
            else:
                logits = plain.apply({"params": params}, images)
            value = losses.distillation_loss(
                logits, labels, wanted, config.distillation, config.label_smoothing
            )
            return value + extra, {"accuracy": losses.accuracy(logits, labels), **shares}

        return optimizer.update_state(state, index, loss, transform, config.optimizer.ema)

    return jit_step(step, mesh)


@functools.lru_cache(maxsize=None)
def predict(spec: PiTSpec) -> Callable:
    """Compiled (params, images) -> int32 [B], the predicted classes; dropped tokens are really gone."""
    return jax.jit(lambda params, images: jnp.argmax(PiT(spec).apply({"params": params}, images), -1))


def top1(spec: PiTSpec, params: Tree, split: Split, batch: int) -> float:
    """Share of right predictions; the last batch is padded and its padding not counted."""
    right, total = 0, len(split.labels)
    for start in range(0, total, batch):
        images, labels = split.images[start : start + batch], split.labels[start : start + batch]
        padded = np.pad(images, [(0, batch - len(images))] + [(0, 0)] * 3)
        right += int((np.asarray(predict(spec)(params, padded))[: len(labels)] == labels).sum())
    return right / total
