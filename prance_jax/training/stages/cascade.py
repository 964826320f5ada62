"""Training of a cascade: stage one with random structures, stage three under decisions; all exits are always trained.

Stage one trains the looks side by side. Every step runs

- the largest structure of the dense network, on the labels; its prediction teaches all other answers (in-place
  distillation);
- every earlier look at its largest structure, and at random structures per image, each handing its tokens to the next
  look, again at random structures;
- the smallest structure of the last look.

A look of refined cells needs an earlier one. So where it runs alone, every patch is a token; where it gets tokens, also
its cells are chosen.

Stage three trains the paths that decisions take. An image that would stop goes on by a random step, so every exit sees
all images: an exit that few images reach must not get worse.

Reference: deep supervision and in-place distillation of exits: MSDNet, arXiv 1703.09844; BigNAS, arXiv 2003.11142.
"""

from __future__ import annotations

import functools
from typing import Any, Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from prance_jax.cascade.forward import DecideAtExit, forward_cascade
from prance_jax.cascade.passes import forward_look
from prance_jax.config.stages import FinetuneConfig, MetaConfig
from prance_jax.core import losses
from prance_jax.core.sharding import constrain_batch, jit_step
from prance_jax.models.vit import ViT
from prance_jax.spec.cascade import Cascade, CascadeSpec
from prance_jax.spec.model_spec import ModelSpec
from prance_jax.spec.structure import Structure
from prance_jax.training import optimizer
from prance_jax.training.stages.pretrain import Sample

Tree = Any


@functools.lru_cache(maxsize=None)
def cascade_meta_step(
    spec: CascadeSpec,
    config: MetaConfig,
    keep_choices: tuple[tuple[float, ...], ...],
    exit_weight: float,
    sample: Sample,
    mesh: Mesh | None = None,
    is_elastic: bool = True,
) -> Callable:
    """Compiles the training step of stage one of a cascade.

    Args:
      spec: the looks.
      config: settings of stage one.
      keep_choices: for each rate of a decision, the keep rates to draw from.
      exit_weight: weight of the mean loss of the exits of a look beside that of its head.
      sample: (tables, key, batch) -> (images, labels), of the data source.
      mesh: devices; None for one device.
      is_elastic: whether smaller structures are trained; if not, the looks hand on tokens at their largest structures.

    Returns:
      Compiled (state, step, key, tables) -> (state, metrics). The state is donated.
    """
    transform, last = optimizer.make_optimizer(config.optimizer, config.steps), len(spec.looks) - 1
    alone = spec.unrefined
    smallest = spec.last.space.smallest((config.smallest_keep,) * spec.last.rates)
    num_random = config.random_batch

    def student_loss(logits, teacher, labels):
        return losses.distillation_loss(logits, labels, teacher, config.distillation, config.label_smoothing)

    def exit_loss(answers, teacher, labels):
        """Mean over the exits of a look; the last answer is its head's."""
        parts = [student_loss(logits, teacher, labels) for logits in answers[:-1]]
        return exit_weight * sum(parts) / max(len(parts), 1)

    def look_loss(answers, teacher, labels):
        return student_loss(answers[-1], teacher, labels) + exit_loss(answers, teacher, labels)

    def random_structure(key, vit: ModelSpec, ramp) -> Structure:
        if not is_elastic:
            return vit.largest
        sampled = vit.space.sample(key, num_random, keep_choices)
        soften = lambda rates: tuple(1 - ramp * (1 - rate) for rate in rates)
        return Structure(tuple(group._replace(keep=soften(group.keep)) for group in sampled.groups))

    def step(state, index, key, tables):
        data_key, structure_key = jax.random.split(jax.random.fold_in(key, index))
        images, labels = constrain_batch(mesh, sample(tables, data_key, config.batch))
        ramp = jnp.clip((index / config.steps - config.reduce_from) / 0.2, 0.0, 1.0)
        keys = jax.random.split(structure_key, len(spec.looks))
        structures = [random_structure(keys[look], spec.looks[look].spec, ramp) for look in range(last + 1)]
        few, few_last = slice(num_random), slice(-num_random, None)

        def loss(params):
            largest = forward_look(alone, params, images, last, spec.last.largest).answers
            teacher = largest[-1]
            value = losses.cross_entropy(teacher, labels, config.label_smoothing)
            value += exit_loss(largest, teacher, labels)
            metrics = {"accuracy": losses.accuracy(teacher, labels)}
            for look in range(last):
                answers = forward_look(alone, params, images, look, spec.looks[look].spec.largest).answers
                value += look_loss(answers, teacher, labels)
                metrics[f"accuracy_look_{look}"] = losses.accuracy(answers[-1], labels)

            def smaller_structures():
                value, before = 0.0, None
                if is_elastic:
                    small = forward_look(alone, params, images[few_last], last, smallest).answers
                    value += look_loss(small, teacher[few_last], labels[few_last])
                for look in range(last + 1):
                    random = forward_look(spec, params, images[few], look, structures[look], before)
                    value += look_loss(random.answers, teacher[few], labels[few])
                    before = (look, random.state)
                return value, losses.accuracy(random.answers[-1], labels[few])

            largest_alone = index < jnp.float32(config.largest_alone * config.steps)
            smaller, random = jax.lax.cond(largest_alone, lambda: (jnp.float32(0),) * 2, smaller_structures)
            return value + smaller, {**metrics, "accuracy_random": random}

        return optimizer.update_state(state, index, loss, transform, config.optimizer.ema)

    return jit_step(step, mesh)


@functools.lru_cache(maxsize=None)
def cascade_finetune_step(
    cascade: Cascade,
    config: FinetuneConfig,
    policy: Callable[..., DecideAtExit],
    sample: Sample,
    mesh: Mesh | None = None,
) -> Callable:
    """Compiles the training step of stage three of a cascade.

    Args:
      cascade: the tree.
      config: settings of stage three.
      policy: (policy_params, key) -> decisions; hashable.
      sample: (tables, key, batch) -> (images, labels), of the data source.
      mesh: devices; None for one device.

    Returns:
      Compiled (state, step, key, tables, policy_params, teacher) -> (state, metrics). `teacher` has the
      parameters of the dense network. The state is donated.
    """
    transform = optimizer.make_optimizer(config.optimizer, config.steps)
    teacher_spec = cascade.spec.dense
    num_children = jnp.asarray([len(children) for children in cascade.children], jnp.int32)

    def step(state, index, key, tables, policy_params, teacher):
        data_key, policy_key, random_key = jax.random.split(jax.random.fold_in(key, index), 3)
        images, labels = constrain_batch(mesh, sample(tables, data_key, config.batch))
        teacher_logits = ViT(teacher_spec).apply({"params": teacher}, images, teacher_spec.largest)
        decide = policy(policy_params, policy_key)

        noise = jax.random.uniform(random_key, (config.batch, cascade.num_nodes), dtype=jnp.float32)

        def go_on(node, features):
            """The decision, or a random step where the image would stop although it can go on."""
            action, children = decide(node, features), num_children[node]
            draw = jnp.take_along_axis(noise, node[:, None], axis=1)[:, 0]
            random_step = 1 + jnp.minimum((draw * children).astype(jnp.int32), children - 1)
            return jnp.where((action == 0) & (children > 0), random_step, action)

        def loss(params):
            output = forward_cascade(cascade, params, images, go_on)
            total = count = 0.0
            for answer in output.answers:
                rows = losses.distillation_loss_per_image(
                    answer.logits, labels, teacher_logits, config.distillation, config.label_smoothing
                )
                reached = answer.reached.astype(jnp.float32)
                total, count = total + jnp.sum(reached * rows), count + jnp.sum(reached)
            return total / count, {"accuracy": losses.accuracy(output.logits, labels)}

        return optimizer.update_state(state, index, loss, transform, config.optimizer.ema)

    return jit_step(step, mesh)
