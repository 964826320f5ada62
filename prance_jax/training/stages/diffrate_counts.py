"""DiffRate's learning of how many tokens each layer prunes and merges (Chen et al. 2023, arXiv 2305.17997, section 3): the
weights are frozen, and what comes out is a static schedule."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from prance_jax.baselines.diffrate_counts import LearnedCounts
from prance_jax.config.comparison import CountsConfig
from prance_jax.core import losses
from prance_jax.core.sharding import constrain_batch, jit_step
from prance_jax.models.reduction import METHODS, ScheduledReduction, at_macs
from prance_jax.models.vit import ViT
from prance_jax.spec.macs import macs
from prance_jax.spec.model_spec import ModelSpec
from prance_jax.tokens.methods.diffrate import Counted
from prance_jax.tokens.schedules import Kept
from prance_jax.training import optimizer
from prance_jax.training.stages.pretrain import Sample

Tree = Any


def make_learned_counts(spec: ModelSpec, config: CountsConfig) -> LearnedCounts:
    """What is learned of a network, by a configuration."""
    return LearnedCounts(spec, config.granularity, config.first)


def init_diffrate_counts(spec: ModelSpec, share: float, config: CountsConfig) -> Tree:
    """Begins at DiffRate's constant schedule of `share` of the MACs."""
    start = at_macs(spec, spec.largest, "diffrate", share * macs(spec, spec.largest).total)
    logits = make_learned_counts(spec, config).near(start.tokens_after(spec))
    return optimizer.init_state({"logits": logits}, optimizer.make_optimizer(config.optimizer, config.steps))


@functools.lru_cache(maxsize=1)
def counts_step(
    spec: ModelSpec, config: CountsConfig, share: float, sample: Sample, mesh: Mesh | None = None
) -> Callable:
    """Compiled (state, step, key, tables, params) -> (state, metrics).

    The loss is cross-entropy and, weighted by `config.weight`, the squared distance of the multiply-accumulates from `share`
    of the network's own. params: of the frozen network.
    """
    model, transform = ViT(spec), optimizer.make_optimizer(config.optimizer, config.steps)
    search = make_learned_counts(spec, config)

    def step(state, index, key, tables, params):
        images, labels = constrain_batch(mesh, sample(tables, jax.random.fold_in(key, index), config.batch))

        def loss(learned):
            counts = search.counts(learned["logits"])
            logits, spent = search.run(model, params, images, counts), search.share(counts)
            value = losses.cross_entropy(logits, labels) + config.weight * jnp.square(spent - share)
            return value, {"accuracy": losses.accuracy(logits, labels), "macs_kept": spent}

        return optimizer.update_state(state, index, loss, transform, config.optimizer.ema)

    return jit_step(step, mesh)


def best_counts(spec: ModelSpec, config: CountsConfig, logits: jax.Array) -> ScheduledReduction:
    """The schedule of logits, as a reduction of any execution without masks."""
    search, steps, before = make_learned_counts(spec, config), [], spec.tokens
    tokens_after = np.asarray(search.counts(logits).tokens_after).astype(int)
    rows = dict(zip(search.layers, tokens_after.tolist()))
    for layer in range(spec.space.depth):
        between, after = rows.get(layer, (before, before))
        steps.append((before, between, after))
        before = after
    method = dataclasses.replace(METHODS["diffrate"], name="diffrate_learned", reduce=Counted(tuple(steps)))
    return ScheduledReduction(method, Kept(tuple(after for _, _, after in steps)))
