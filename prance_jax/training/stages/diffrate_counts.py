"""DiffRate's training of the token counts of each layer.

The network is frozen. The result is a static schedule: how many tokens each layer prunes and merges.

Reference: DiffRate, Chen et al. 2023, arXiv 2305.17997, section 3.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from prance_jax.baselines.diffrate_counts import LearnedCounts
from prance_jax.config.comparison import DiffRateConfig
from prance_jax.core import losses
from prance_jax.core.sharding import constrain_batch, jit_step
from prance_jax.models.reduction import METHODS, ScheduledReduction, reduction_at_macs
from prance_jax.models.vit import ViT
from prance_jax.spec.macs import macs
from prance_jax.spec.model_spec import ModelSpec
from prance_jax.tokens.methods.diffrate import Counted
from prance_jax.tokens.schedules import Kept
from prance_jax.training import optimizer
from prance_jax.training.stages.pretrain import Sample

Tree = Any


def make_learned_counts(spec: ModelSpec, config: DiffRateConfig) -> LearnedCounts:
    """Returns the learnable counts of a network.

    Args:
      spec: the network.
      config: settings of the training.
    """
    return LearnedCounts(spec, config.granularity, config.first)


def init_diffrate_counts(spec: ModelSpec, share: float, config: DiffRateConfig) -> Tree:
    """Returns the initial state: DiffRate's constant schedule at a share of the MACs.

    Args:
      spec: the network.
      share: share of its MACs, above 0 and up to 1.
      config: settings of the training.
    """
    start = reduction_at_macs(spec, spec.largest, "diffrate", share * macs(spec, spec.largest).total)
    logits = make_learned_counts(spec, config).initial_logits(start.tokens_after(spec))
    return optimizer.init_state({"logits": logits}, optimizer.make_optimizer(config.optimizer, config.steps))


@functools.lru_cache(maxsize=1)
def counts_step(
    spec: ModelSpec, config: DiffRateConfig, share: float, sample: Sample, mesh: Mesh | None = None
) -> Callable:
    """Compiles the training step.

    The loss is cross-entropy plus `config.weight` times the squared distance of the share of the MACs
    from its target.

    Args:
      spec: the network.
      config: settings of the training.
      share: target, a share of the network's MACs.
      sample: (tables, key, batch) -> (images, labels), of the data source.
      mesh: devices; None for one device.

    Returns:
      Compiled (state, step, key, tables, params) -> (state, metrics). `params` are those of the frozen
      network. The state is donated.
    """
    model, transform = ViT(spec), optimizer.make_optimizer(config.optimizer, config.steps)
    learnable = make_learned_counts(spec, config)

    def step(state, index, key, tables, params):
        images, labels = constrain_batch(mesh, sample(tables, jax.random.fold_in(key, index), config.batch))

        def loss(count_params):
            counts = learnable.counts(count_params["logits"])
            logits, macs_kept = learnable.forward(model, params, images, counts), learnable.macs_kept(counts)
            value = losses.cross_entropy(logits, labels) + config.weight * jnp.square(macs_kept - share)
            return value, {"accuracy": losses.accuracy(logits, labels), "macs_kept": macs_kept}

        return optimizer.update_state(state, index, loss, transform, config.optimizer.ema)

    return jit_step(step, mesh)


def best_counts(spec: ModelSpec, config: DiffRateConfig, logits: jax.Array) -> ScheduledReduction:
    """Returns the schedule of learned counts, as a reduction for any execution without masks.

    Args:
      spec: the network.
      config: settings of the training.
      logits: float32 [layers, 2, counts], from the state.
    """
    learnable, steps, before = make_learned_counts(spec, config), [], spec.tokens
    tokens_after = np.asarray(learnable.counts(logits).tokens_after).astype(int)
    learned = dict(zip(learnable.layers, tokens_after.tolist()))
    for layer in range(spec.space.depth):
        after_pruning, after = learned.get(layer, (before, before))
        steps.append((before, after_pruning, after))
        before = after
    method = dataclasses.replace(METHODS["diffrate"], name="diffrate_learned", reduce=Counted(tuple(steps)))
    return ScheduledReduction(method, Kept(tuple(after for _, _, after in steps)))
