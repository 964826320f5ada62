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

from prance_jax.baselines.predictor_config import Selective
from prance_jax.baselines.predictor_vit import SelectiveViT
from prance_jax.config.comparison import ConsistencyConfig, SelectiveConfig
from prance_jax.config.stages import FinetuneConfig
from prance_jax.core import losses
from prance_jax.core.sharding import jit_step, keep_rows
from prance_jax.models.reduction import Reduction, reduced
from prance_jax.models.vit import ViT
from prance_jax.spec.model_spec import ModelSpec
from prance_jax.training import optimizer
from prance_jax.training.stages.consistency import consistent_loss
from prance_jax.training.stages.pretrain import Sample

Tree = Any

PROGRAMS = 2
"""Compiled steps that are kept. One takes some 1,500 memory mappings of the process, of which Linux allows 65,530, and a
comparison compiles one for every method and share: all of them together end it by a segmentation fault."""


def init(
    spec: ModelSpec,
    what: Reduction | Selective | None,
    params: Tree,
    config: FinetuneConfig,
    key: jax.Array,
    at_shares: bool = False,
) -> Tree:
    """The state that begins with `params`: a plain network's or, where selectors are learned, also those of one that has
    selectors; sites without one get a fresh one, and what stands elsewhere is left out. at_shares: a fresh one keeps about its
    share of `what.kept`, in place of half of the tokens."""
    params = jax.tree.map(jnp.copy, params)
    if isinstance(what, Selective):
        known = params if "vit" in params else {"vit": params}
        fresh = _fresh(spec, dataclasses.replace(what, kept=(1.0,) * len(what.sites)))(key)
        if at_shares:
            for site, share in zip(what.sites, what.kept):
                own = fresh[f"selector_{site}"]
                # Of the two logits, keep and drop; a share of 1 would never drop, nor learn to.
                odds = jnp.log(share / max(1 - share, 0.01))
                fresh[f"selector_{site}"] = {**own, "decide_bias": own["decide_bias"].at[:, 0].set(odds)}
        params = {name: known.get(name, own) for name, own in fresh.items()}
    return optimizer.init(params, optimizer.make(config.optimizer, config.steps))


@functools.lru_cache(maxsize=None)
def _fresh(spec: ModelSpec, what: Selective) -> Callable[[jax.Array], Tree]:
    """Compiled key -> parameters of a network with selectors; they are the same whatever share is kept."""
    image = jnp.zeros((1, spec.image_size, spec.image_size, spec.channels))
    return jax.jit(lambda key: SelectiveViT(spec, what).init(key, image)["params"])


@functools.lru_cache(maxsize=PROGRAMS)
def tune_step(
    spec: ModelSpec,
    config: FinetuneConfig,
    selective: SelectiveConfig,
    what: Reduction | Selective | None,
    sample: Sample,
    mesh: Mesh | None = None,
    consistency: ConsistencyConfig | None = None,
) -> Callable:
    """Compiled (state, step, key, tables, teacher) -> (state, metrics).

    The loss is cross-entropy and, weighted by `config.distillation`, the divergence from the teacher; learned selectors add
    `selection_loss`, and a reduction with `consistency` its `consistent_loss`. One more argument may follow: shares float32
    [sites] in place of `what.kept`, for one program that serves them all.
    """
    model, transform = ViT(spec), optimizer.make(config.optimizer, config.steps)

    def step(state, index, key, tables, teacher, kept=None):
        data_key, draw_key = jax.random.split(jax.random.fold_in(key, index))
        images, labels = keep_rows(mesh, sample(tables, data_key, config.batch))

        def mixed(logits, wanted):
            value = losses.taught(logits, labels, wanted, config.distillation, config.label_smoothing)
            return value, {"accuracy": losses.accuracy(logits, labels)}

        def loss(params):
            if isinstance(what, Selective):
                learner = SelectiveViT(spec, what)
                wanted, patches = learner.apply(
                    {"params": {**params, "vit": teacher}}, images, method="features"
                )
                out = learner.apply({"params": params}, images, draw_key, method="train")
                value, metrics = mixed(out.logits, wanted)
                shares = {f"kept_{site}": out.kept[:, i].mean() for i, site in enumerate(what.sites)}
                targets = what.kept if kept is None else kept
                extra = selection_loss(targets, selective, out, patches, per_image=not what.package)
                return value + extra, {**metrics, **shares}
            wanted = model.apply({"params": teacher}, images, spec.largest)
            if what is None:
                return mixed(model.apply({"params": params}, images, spec.largest), wanted)
            if consistency is None:
                return mixed(reduced(model, params, images, spec.largest, what).logits, wanted)
            value, logits = consistent_loss(
                model, params, images, labels, wanted, what, config, consistency, draw_key
            )
            return value, {"accuracy": losses.accuracy(logits, labels)}

        return optimizer.update(state, index, loss, transform, config.optimizer.ema)

    return jit_step(step, mesh)


def selection_loss(
    targets: tuple[float, ...] | jax.Array,
    config: SelectiveConfig,
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
    there = jax.lax.stop_gradient(out.there)
    apart = jnp.mean((out.features - jax.lax.stop_gradient(patches)) ** 2, axis=-1)
    tokens = jnp.sum(apart * there) / jnp.maximum(there.sum(), 1.0)
    return config.ratio * ratio + config.tokens * tokens
