"""Stage one, and the dense network: networks trained on labels.

Stage one uses sandwich sampling (BigNAS, OFA, AutoFormer). Every step runs the largest structure, the
smallest, and random ones, drawn per image and per layer among those that the selector can choose. The
largest is trained on the labels, the others mostly on its predictions (in-place distillation). The
largest and the smallest run compact, the random ones masked.
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
    """Returns the initial state of stage one or of the dense network.

    Args:
      spec: the network.
      config: the stage's settings.
      key: random key of the initial parameters.
      start: (random parameters) -> initial parameters; None for the random ones.
    """
    params = forward.init_params(ViT(spec), key)
    if start is not None:
        params = jax.tree.map(jnp.asarray, start(params))
    return optimizer.init_state(params, optimizer.make_optimizer(config.optimizer, config.steps))


@functools.lru_cache(maxsize=None)
def dense_step(spec: ModelSpec, config: DenseConfig, sample: Sample, mesh: Mesh | None = None) -> Callable:
    """Compiles the training step of the dense network: the largest structure on labels.

    Args:
      spec: the network.
      config: the stage's settings.
      sample: (tables, key, batch) -> (images, labels), of the data source.
      mesh: devices; None for one device.

    Returns:
      Compiled (state, step, key, tables) -> (state, metrics). The state is donated.
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
    """Compiles the training step of stage one, by sandwich sampling.

    Until `reduce_from` no token is dropped. Then the share that may be dropped grows linearly to the
    full one over a fifth of the steps.

    Args:
      spec: the network.
      config: the stage's settings.
      first_choice: structure of group 0 under random structures, as under the selector.
      keep_choices: for each rate of a decision, the keep rates to draw from.
      sample: (tables, key, batch) -> (images, labels), of the data source.
      mesh: devices; None for one device.

    Returns:
      Compiled (state, step, key, tables) -> (state, metrics). The state is donated.

    Reference: PRANCE, arXiv 2407.05010, section 3.
    """
    model, transform, space = ViT(spec), optimizer.make_optimizer(config.optimizer, config.steps), spec.space
    smallest = space.smallest((config.smallest_keep,) * spec.rates)
    num_random = config.random_batch

    def student_loss(logits, teacher, labels):
        return losses.distillation_loss(logits, labels, teacher, config.distillation, config.label_smoothing)

    def step(state, index, key, tables):
        data_key, structure_key = jax.random.split(jax.random.fold_in(key, index))
        images, labels = constrain_batch(mesh, sample(tables, data_key, config.batch))
        ramp = jnp.clip((index / config.steps - config.reduce_from) / 0.2, 0.0, 1.0)
        sampled = space.sample(structure_key, num_random, keep_choices)
        groups = [first_choice] + [
            group._replace(keep=tuple(1 - ramp * (1 - rate) for rate in group.keep))
            for group in sampled.groups[1:]
        ]

        def loss(params):
            run = functools.partial(model.apply, {"params": params})
            largest = run(images, spec.largest)
            value = losses.cross_entropy(largest, labels, config.label_smoothing)
            metrics = {"accuracy": losses.accuracy(largest, labels)}

            def smaller_structures():
                first, last = slice(num_random), slice(-num_random, None)
                small = run(images[last], smallest)
                random = run(images[first], Structure(tuple(groups)))
                value = student_loss(small, largest[last], labels[last])
                value += student_loss(random, largest[first], labels[first])
                return value, losses.accuracy(small, labels[last]), losses.accuracy(random, labels[first])

            largest_alone = index < jnp.float32(config.largest_alone * config.steps)
            student_value, small, random = jax.lax.cond(
                largest_alone, lambda: (jnp.float32(0),) * 3, smaller_structures
            )
            return value + student_value, {**metrics, "accuracy_smallest": small, "accuracy_random": random}

        return optimizer.update_state(state, index, loss, transform, config.optimizer.ema)

    return jit_step(step, mesh)
