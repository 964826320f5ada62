"""Stage three: the meta-network is fine-tuned under the decisions of a policy.

The policy is frozen: a trained selector, or for the baselines a random policy or one static structure.

Reference: PRANCE, arXiv 2407.05010, section 3.5.
"""

from __future__ import annotations

import functools
from typing import Any, Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from prance_jax.config.stages import FinetuneConfig
from prance_jax.core import losses
from prance_jax.core.sharding import constrain_batch, jit_step
from prance_jax.models.forward import forward_adaptive
from prance_jax.models.vit import ViT
from prance_jax.selector.policies import DecisionPolicy
from prance_jax.spec.macs import macs
from prance_jax.spec.model_spec import ModelSpec
from prance_jax.training import optimizer
from prance_jax.training.stages.pretrain import Sample

Tree = Any


def init_finetune(params: Tree, config: FinetuneConfig) -> Tree:
    """Returns the initial state: the parameters of stage one.

    Args:
      params: parameters of the meta-network; they are copied.
      config: the stage's settings.
    """
    return optimizer.init_state(
        jax.tree.map(jnp.copy, params), optimizer.make_optimizer(config.optimizer, config.steps)
    )


@functools.lru_cache(maxsize=None)
def finetune_step(
    spec: ModelSpec, config: FinetuneConfig, policy: DecisionPolicy, sample: Sample, mesh: Mesh | None = None
) -> Callable:
    """Compiles the training step.

    Args:
      spec: the network.
      config: the stage's settings.
      policy: the decisions.
      sample: (tables, key, batch) -> (images, labels), of the data source.
      mesh: devices; None for one device.

    Returns:
      Compiled (state, step, key, tables, policy_params, teacher) -> (state, metrics). `teacher` has the
      parameters of the network whose largest structure teaches. The state is donated.
    """
    model, transform = ViT(spec), optimizer.make_optimizer(config.optimizer, config.steps)
    full = float(macs(spec, spec.largest).total)

    def step(state, index, key, tables, policy_params, teacher):
        data_key, policy_key = jax.random.split(jax.random.fold_in(key, index))
        images, labels = constrain_batch(mesh, sample(tables, data_key, config.batch))
        teacher_logits = model.apply({"params": teacher}, images, spec.largest)

        def loss(params):
            output = forward_adaptive(
                model, params, images, policy.first_choice, policy.decide(policy_params, policy_key)
            )
            share, smoothing = config.distillation, config.label_smoothing
            value = losses.distillation_loss(output.logits, labels, teacher_logits, share, smoothing)
            metrics = {
                "accuracy": losses.accuracy(output.logits, labels),
                "macs_kept": jnp.mean(jnp.asarray(macs(spec, output.structure).total, jnp.float32)) / full,
            }
            return value, metrics

        return optimizer.update_state(state, index, loss, transform, config.optimizer.ema)

    return jit_step(step, mesh)
