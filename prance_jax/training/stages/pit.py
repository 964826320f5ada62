"""Training of PiT: on labels, then with a teacher, without or with a token predictor in each stage."""

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
    """Returns the initial state.

    Args:
      spec: the network.
      config: settings of the training.
      key: random key of the initial parameters.
      start: initial parameters by name, of a plain network; all others (the predictors') are random.
    """
    params = {**_fresh(spec)(key), **jax.tree.map(jnp.copy, start or {})}
    return optimizer.init_state(params, optimizer.make_optimizer(config.optimizer, config.steps))


@functools.lru_cache(maxsize=None)
def _fresh(spec: PiTSpec) -> Callable:
    """Returns the compiled key -> random parameters."""
    image = jnp.zeros((1, spec.image_size, spec.image_size, spec.channels), jnp.float32)
    return jax.jit(lambda key: PiT(spec).init(key, image)["params"])


@functools.lru_cache(maxsize=None)
def pit_step(
    spec: PiTSpec,
    config: FinetuneConfig,
    predictor: PredictorLossConfig,
    sample: Sample,
    mesh: Mesh | None = None,
) -> Callable:
    """Compiles the training step.

    Without a teacher the loss is the cross-entropy of the plain network. With a teacher, the parameters
    of a plain network, the KL divergence from it is added with weight `config.distillation`, and, if
    the network has predictors, `predictor_loss`. Metrics kept_0, kept_1 and so on are then the shares
    of patches that remain in each stage.

    Args:
      spec: the network.
      config: settings of the training.
      predictor: losses of the predictors.
      sample: (tables, key, batch) -> (images, labels), of the data source.
      mesh: devices; None for one device.

    Returns:
      Compiled (state, step, key, tables, teacher=None) -> (state, metrics). The state is donated.
    """
    model, plain, transform = (
        PiT(spec),
        PiT(spec.plain),
        optimizer.make_optimizer(config.optimizer, config.steps),
    )

    def step(state, index, key, tables, teacher=None):
        data_key, mask_key = jax.random.split(jax.random.fold_in(key, index))
        images, labels = constrain_batch(mesh, sample(tables, data_key, config.batch))

        def loss(params):
            if teacher is None:
                logits = plain.apply({"params": params}, images)
                value = losses.cross_entropy(logits, labels, config.label_smoothing)
                return value, {"accuracy": losses.accuracy(logits, labels)}
            teacher_logits, patches = plain.apply({"params": teacher}, images, method="features")
            auxiliary, shares = 0.0, {}
            if spec.predictor_blocks:
                out = model.apply({"params": params}, images, mask_key, method="train")
                logits, auxiliary = out.logits, predictor_loss(spec.keep_rates, predictor, out, patches)
                shares = {
                    f"kept_{stage}": out.kept[:, stage].mean() for stage in range(len(spec.predictor_blocks))
                }
            else:
                logits = plain.apply({"params": params}, images)
            value = losses.distillation_loss(
                logits, labels, teacher_logits, config.distillation, config.label_smoothing
            )
            return value + auxiliary, {"accuracy": losses.accuracy(logits, labels), **shares}

        return optimizer.update_state(state, index, loss, transform, config.optimizer.ema)

    return jit_step(step, mesh)


@functools.lru_cache(maxsize=None)
def predict(spec: PiTSpec) -> Callable:
    """Compiles (params, images) -> predicted classes int32 [B]; dropped tokens are removed."""
    return jax.jit(lambda params, images: jnp.argmax(PiT(spec).apply({"params": params}, images), -1))


def top1(spec: PiTSpec, params: Tree, split: Split, batch: int) -> float:
    """Returns the share of correct predictions.

    Args:
      spec: the network.
      params: its parameters.
      split: images and labels.
      batch: images per call; the last batch is padded, and the padding does not count.
    """
    num_correct, total = 0, len(split.labels)
    for start in range(0, total, batch):
        images, labels = split.images[start : start + batch], split.labels[start : start + batch]
        padded = np.pad(images, [(0, batch - len(images))] + [(0, 0)] * 3)
        num_correct += int((np.asarray(predict(spec)(params, padded))[: len(labels)] == labels).sum())
    return num_correct / total
