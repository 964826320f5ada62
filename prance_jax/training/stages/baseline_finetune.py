"""Fine-tuning of a trained network under another method than PRANCE: a schedule of token reduction, or learned selectors.

The teacher is the network it starts from, unreduced. With neither, the network is tuned as it is: what the same steps are
worth without any reduction.
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
"""Compiled steps that are kept. One takes some 1,500 memory mappings of the process, of which Linux allows 65,530, and a
comparison compiles one for every method and share: all of them together end it by a segmentation fault."""


def init_baseline(
    spec: ModelSpec,
    what: ScheduledReduction | PredictorConfig | None,
    params: Tree,
    config: FinetuneConfig,
    key: jax.Array,
    at_shares: bool = False,
) -> Tree:
    """The state that begins with `params`: a plain network's or, where selectors are learned, also those of one that has
    selectors; sites without one get a fresh one, and what stands elsewhere is left out. at_shares: a fresh one keeps about its
    share of `what.keep_rates`, in place of half of the tokens."""
    params = jax.tree.map(jnp.copy, params)
    if isinstance(what, PredictorConfig):
        known = params if "vit" in params else {"vit": params}
        fresh = _fresh(spec, dataclasses.replace(what, keep_rates=(1.0,) * len(what.layers)))(key)
        if at_shares:
            for site, share in zip(what.layers, what.keep_rates):
                own = fresh[f"selector_{site}"]
                # Of the two logits, keep and drop; a share of 1 would never drop, nor learn to.
                odds = jnp.log(share / max(1 - share, 0.01))
                fresh[f"selector_{site}"] = {**own, "decide_bias": own["decide_bias"].at[:, 0].set(odds)}
        params = {name: known.get(name, own) for name, own in fresh.items()}
    return optimizer.init_state(params, optimizer.make_optimizer(config.optimizer, config.steps))


@functools.lru_cache(maxsize=None)
def _fresh(spec: ModelSpec, what: PredictorConfig) -> Callable[[jax.Array], Tree]:
    """Compiled key -> parameters of a network with selectors; they are the same whatever share is kept."""
    image = jnp.zeros((1, spec.image_size, spec.image_size, spec.channels))
    return jax.jit(lambda key: PredictorViT(spec, what).init(key, image)["params"])


@functools.lru_cache(maxsize=PROGRAMS)
def baseline_step(
    spec: ModelSpec,
    config: FinetuneConfig,
    predictor: PredictorLossConfig,
    what: ScheduledReduction | PredictorConfig | None,
    sample: Sample,
    mesh: Mesh | None = None,
    consistency: ConsistencyConfig | None = None,
) -> Callable:
    """Compiled (state, step, key, tables, teacher) -> (state, metrics).

    The loss is cross-entropy and, weighted by `config.distillation`, the divergence from the teacher; learned selectors add
    `selection_loss`, and a reduction with `consistency` its `consistent_loss`. One more argument may follow: shares float32
    [sites] in place of `what.keep_rates`, for one program that serves them all.
    """
    model, transform = ViT(spec), optimizer.make_optimizer(config.optimizer, config.steps)

    def step(state, index, key, tables, teacher, kept=None):
        data_key, draw_key = jax.random.split(jax.random.fold_in(key, index))
        images, labels = constrain_batch(mesh, sample(tables, data_key, config.batch))

        def mixed(logits, wanted):
            value = losses.distillation_loss(
                logits, labels, wanted, config.distillation, config.label_smoothing
            )
            return value, {"accuracy": losses.accuracy(logits, labels)}

        def loss(params):
            if isinstance(what, PredictorConfig):
                learner = PredictorViT(spec, what)
                wanted, patches = learner.apply(
                    {"params": {**params, "vit": teacher}}, images, method="features"
                )
                out = learner.apply({"params": params}, images, draw_key, method="train")
                value, metrics = mixed(out.logits, wanted)
                shares = {f"kept_{site}": out.kept[:, i].mean() for i, site in enumerate(what.layers)}
                targets = what.keep_rates if kept is None else kept
                extra = predictor_loss(targets, predictor, out, patches, per_image=not what.package)
                return value + extra, {**metrics, **shares}
            wanted = model.apply({"params": teacher}, images, spec.largest)
            if what is None:
                return mixed(model.apply({"params": params}, images, spec.largest), wanted)
            if consistency is None:
                return mixed(forward_reduced(model, params, images, spec.largest, what).logits, wanted)
            value, logits = consistent_loss(
                model, params, images, labels, wanted, what, config, consistency, draw_key
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
    """How far the kept shares are from their targets, and the last patches from the teacher's (both squared).

    targets: [sites]. out: of the network's `train`. patches: the teacher's, [B, P, C]; those that are left count.
    per_image: the share is that of each image (DynamicViT); else of the whole batch, which leaves the number of an image
    free (SPViT).
    """
    shares = out.kept if per_image else out.kept.mean(axis=0)
    ratio = jnp.mean((shares - jnp.asarray(targets)) ** 2)
    is_kept = jax.lax.stop_gradient(out.is_kept)
    apart = jnp.mean((out.features - jax.lax.stop_gradient(patches)) ** 2, axis=-1)
    tokens = jnp.sum(apart * is_kept) / jnp.maximum(is_kept.sum(), 1.0)
    return config.ratio * ratio + config.tokens * tokens
