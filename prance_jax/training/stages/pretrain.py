"""Stage one, and the dense baseline: networks trained on labels.

Sandwich sampling (BigNAS, OFA, AutoFormer): every step runs the largest structure, the smallest, and random ones drawn
per image and per layer exactly as the selector can choose them. The largest learns from the labels, the others mostly
from its predictions (in-place distillation). The largest and the smallest run compact, the random ones masked.
"""

from __future__ import annotations

import functools
from typing import Any, Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from prance_jax.config.stages import DenseConfig, MetaConfig
from prance_jax.core import losses
from prance_jax.core.sharding import constrain_batch, jit_step
from prance_jax.models import forward
from prance_jax.models.vit import ViT
from prance_jax.spec.model_spec import ModelSpec
from prance_jax.spec.structure import GroupChoice, Structure
from prance_jax.training import optimizer

Tree = Any
Sample = Callable[[Any, jax.Array, int], tuple[jax.Array, jax.Array]]


def init_pretrain(
    spec: ModelSpec,
    config: DenseConfig | MetaConfig,
    key: jax.Array,
    start: Callable[[Tree], Tree] | None = None,
) -> Tree:
    """Fresh state of either stage. start: (fresh parameters) -> those to begin with."""
    params = forward.init_params(ViT(spec), key)
    if start is not None:
        params = jax.tree.map(jnp.asarray, start(params))
    return optimizer.init_state(params, optimizer.make_optimizer(config.optimizer, config.steps))


@functools.lru_cache(maxsize=None)
def dense_step(spec: ModelSpec, config: DenseConfig, sample: Sample, mesh: Mesh | None = None) -> Callable:
    """Compiled (state, step, key, tables) -> (state, metrics): the largest structure on labels.

    sample: (tables, key, batch) -> (images, labels), of the data source. The state is donated.
    """
    model, transform = ViT(spec), optimizer.make_optimizer(config.optimizer, config.steps)

    def step(state, index, key, tables):
        images, labels = constrain_batch(mesh, sample(tables, jax.random.fold_in(key, index), config.batch))

        def loss(params):
            logits = model.apply({"params": params}, images, spec.largest)
            value = losses.cross_entropy(logits, labels, config.label_smoothing)
            return value, {"accuracy": losses.accuracy(logits, labels)}

        return optimizer.update_state(state, index, loss, transform, config.optimizer.ema)

    return jit_step(step, mesh)


@functools.lru_cache(maxsize=None)
def meta_step(
    spec: ModelSpec,
    config: MetaConfig,
    first_choice: GroupChoice,
    keep_choices: tuple[tuple[float, ...], ...],
    sample: Sample,
    mesh: Mesh | None = None,
) -> Callable:
    """Compiled (state, step, key, tables) -> (state, metrics): one sandwich step.

    first: the structure of group 0 under which random structures run, as they will under the selector.
    keep_choices: per rate, the keep rates to draw from. Until `reduce_from` no token is dropped; then the share that
    may be dropped grows linearly to the full one over a fifth of the steps.
    """
    model, transform, space = ViT(spec), optimizer.make_optimizer(config.optimizer, config.steps), spec.space
    smallest = space.smallest((config.smallest_keep,) * spec.rates)
    few = config.random_batch

    def student(logits, teacher, labels):
        return losses.distillation_loss(logits, labels, teacher, config.distillation, config.label_smoothing)

    def step(state, index, key, tables):
        data_key, structure_key = jax.random.split(jax.random.fold_in(key, index))
        images, labels = constrain_batch(mesh, sample(tables, data_key, config.batch))
        ramp = jnp.clip((index / config.steps - config.reduce_from) / 0.2, 0.0, 1.0)
        drawn = space.sample(structure_key, few, keep_choices)
        groups = [first_choice] + [
            group._replace(keep=tuple(1 - ramp * (1 - rate) for rate in group.keep))
            for group in drawn.groups[1:]
        ]

        def loss(params):
            run = functools.partial(model.apply, {"params": params})
            largest = run(images, spec.largest)
            value = losses.cross_entropy(largest, labels, config.label_smoothing)
            metrics = {"accuracy": losses.accuracy(largest, labels)}

            def smaller():
                small = run(images[-few:], smallest)
                random = run(images[:few], Structure(tuple(groups)))
                value = student(small, largest[-few:], labels[-few:])
                value += student(random, largest[:few], labels[:few])
                right = losses.accuracy(small, labels[-few:]), losses.accuracy(random, labels[:few])
                return value, *right

            alone = index < config.largest_alone * config.steps
            more, small, random = jax.lax.cond(alone, lambda: (0.0, 0.0, 0.0), smaller)
            return value + more, {**metrics, "accuracy_smallest": small, "accuracy_random": random}

        return optimizer.update_state(state, index, loss, transform, config.optimizer.ema)

    return jit_step(step, mesh)
