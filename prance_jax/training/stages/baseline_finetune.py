"""Fine-tuning of the dense network under another method than PRANCE.

The method is a scheduled token reduction or token predictors. The teacher is the network it starts
from, unreduced. Without a method the dense network itself is fine-tuned: the gain of the steps alone.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from prance_jax.baselines.predictor_config import PredictorConfig
from prance_jax.baselines.predictor_vit import PredictorViT
from prance_jax.config.comparison import ConsistencyConfig, PredictorLossConfig
from prance_jax.config.stages import FinetuneConfig
from prance_jax.core import losses
from prance_jax.core.sharding import constrain_batch, jit_step
from prance_jax.models.reduction import ScheduledReduction, forward_reduced
from prance_jax.models.vit import ViT
from prance_jax.spec.model_spec import ModelSpec
from prance_jax.training import optimizer
from prance_jax.training.stages.consistency import consistent_loss
from prance_jax.training.stages.pretrain import Sample

Tree = Any

PROGRAMS = 2
"""Number of compiled steps in the cache.

A comparison compiles a step for every method and share. Each takes about 1,500 memory mappings of the
process, of which Linux allows 65,530; with all of them in memory it ends by a segmentation fault."""


def init_baseline(
    spec: ModelSpec,
    method: ScheduledReduction | PredictorConfig | None,
    params: Tree,
    config: FinetuneConfig,
    key: jax.Array,
    at_shares: bool = False,
) -> Tree:
    """Returns the initial state.

    Args:
      spec: the network.
      method: the method to fine-tune under; None for none.
      params: parameters of a plain network; or, for predictors, of a network with predictors. Layers
        without a predictor in `params` get a random one; predictors of other layers are left out.
      config: settings of the fine-tuning.
      key: random key of new predictors.
      at_shares: whether a new predictor keeps about its share of `method.keep_rates`, not half of the
        tokens.
    """
    params = jax.tree.map(jnp.copy, params)
    if isinstance(method, PredictorConfig):
        given = params if "vit" in params else {"vit": params}
        fresh = _fresh(spec, dataclasses.replace(method, keep_rates=(1.0,) * len(method.layers)))(key)
        if at_shares:
            for layer, share in zip(method.layers, method.keep_rates):
                predictor = fresh[f"selector_{layer}"]
                # The logit of keeping; a share of 1 would never drop a token, and never learn to.
                odds = jnp.log(share / max(1 - share, 0.01))
                bias = predictor["decide_bias"].at[:, 0].set(odds)
                fresh[f"selector_{layer}"] = {**predictor, "decide_bias": bias}
        params = {name: given.get(name, initial) for name, initial in fresh.items()}
    return optimizer.init_state(params, optimizer.make_optimizer(config.optimizer, config.steps))


@functools.lru_cache(maxsize=None)
def _fresh(spec: ModelSpec, method: PredictorConfig) -> Callable[[jax.Array], Tree]:
    """Returns the compiled key -> random parameters with predictors; the kept shares do not matter."""
    image = jnp.zeros((1, *spec.image_shape), jnp.float32)
    return jax.jit(lambda key: PredictorViT(spec, method).init(key, image)["params"])


@functools.lru_cache(maxsize=PROGRAMS)
def baseline_step(
    spec: ModelSpec,
    config: FinetuneConfig,
    predictor: PredictorLossConfig,
    method: ScheduledReduction | PredictorConfig | None,
    sample: Sample,
    mesh: Mesh | None = None,
    consistency: ConsistencyConfig | None = None,
) -> Callable:
    """Compiles the training step.

    The loss is cross-entropy and, with weight `config.distillation`, the KL divergence from the
    teacher. Token predictors add `predictor_loss`; with `consistency` the loss is `consistent_loss`.

    Args:
      spec: the network.
      config: settings of the fine-tuning.
      predictor: losses of token predictors.
      method: the method to fine-tune under; None for none.
      sample: (tables, key, batch) -> (images, labels), of the data source.
      mesh: devices; None for one device.
      consistency: settings of MCTF's consistency; None for a plain fine-tuning.

    Returns:
      Compiled (state, step, key, tables, teacher, kept=None) -> (state, metrics). `teacher` has the
      parameters of the dense network. `kept`, float32 [predictors], replaces `method.keep_rates`, so
      that one program serves all shares. The state is donated.
    """
    model, transform = ViT(spec), optimizer.make_optimizer(config.optimizer, config.steps)

    def step(state, index, key, tables, teacher, kept=None):
        data_key, mask_key = jax.random.split(jax.random.fold_in(key, index))
        images, labels = constrain_batch(mesh, sample(tables, data_key, config.batch))

        def distilled(logits, teacher_logits):
            value = losses.distillation_loss(
                logits, labels, teacher_logits, config.distillation, config.label_smoothing
            )
            return value, {"accuracy": losses.accuracy(logits, labels)}

        def loss(params):
            if isinstance(method, PredictorConfig):
                student = PredictorViT(spec, method)
                teacher_logits, patches = student.apply(
                    {"params": {**params, "vit": teacher}}, images, method="features"
                )
                out = student.apply({"params": params}, images, mask_key, method="train")
                value, metrics = distilled(out.logits, teacher_logits)
                shares = {f"kept_{layer}": out.kept[:, i].mean() for i, layer in enumerate(method.layers)}
                targets = method.keep_rates if kept is None else kept
                auxiliary = predictor_loss(targets, predictor, out, patches, per_image=not method.package)
                return value + auxiliary, {**metrics, **shares}
            teacher_logits = model.apply({"params": teacher}, images, spec.largest)
            if method is None:
                return distilled(model.apply({"params": params}, images, spec.largest), teacher_logits)
            if consistency is None:
                logits = forward_reduced(model, params, images, spec.largest, method).logits
                return distilled(logits, teacher_logits)
            value, logits = consistent_loss(
                model, params, images, labels, teacher_logits, method, config, consistency, mask_key
            )
            return value, {"accuracy": losses.accuracy(logits, labels)}

        return optimizer.update_state(state, index, loss, transform, config.optimizer.ema)

    return jit_step(step, mesh)


def predictor_loss(
    targets: tuple[float, ...] | jax.Array,
    config: PredictorLossConfig,
    out,
    patches: jax.Array,
    per_image: bool = False,
) -> jax.Array:
    """Returns the squared distances of kept shares from targets, and of patches from the teacher's.

    Args:
      targets: [predictors], shares of the patches to keep.
      config: weights of the two losses.
      out: output of the network's `train`.
      patches: [B, P, C], last patches of the teacher; only those that remain in the student count.
      per_image: whether each image should keep its target share (DynamicViT), not only the batch as a
        whole (SPViT).

    Returns:
      Float32 scalar.
    """
    shares = out.kept if per_image else out.kept.mean(axis=0)
    ratio = jnp.mean((shares - jnp.asarray(targets, jnp.float32)) ** 2)
    is_kept = jax.lax.stop_gradient(out.is_kept)
    distance = jnp.mean((out.features - jax.lax.stop_gradient(patches)) ** 2, axis=-1)
    tokens = jnp.sum(distance * is_kept) / jnp.maximum(is_kept.sum(), 1.0)
    return config.ratio * ratio + config.tokens * tokens
