"""Stage three: the meta-network is tuned under the decisions it will meet (PRANCE, section 3.5).

The rule that decides is frozen: a trained selector, and for the baselines a random policy or one static structure.
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
    """Starts from the parameters of stage one."""
    return optimizer.init_state(
        jax.tree.map(jnp.copy, params), optimizer.make_optimizer(config.optimizer, config.steps)
    )


@functools.lru_cache(maxsize=None)
def finetune_step(
    spec: ModelSpec, config: FinetuneConfig, policy: DecisionPolicy, sample: Sample, mesh: Mesh | None = None
) -> Callable:
    """Compiled (state, step, key, tables, variables, teacher) -> (state, metrics).

    variables: what the rule decides by. teacher: parameters of the full network that teaches.
    """
    model, transform = ViT(spec), optimizer.make_optimizer(config.optimizer, config.steps)
    full = float(macs(spec, spec.largest).total)

    def step(state, index, key, tables, policy_params, teacher):
        data_key, rule_key = jax.random.split(jax.random.fold_in(key, index))
        images, labels = constrain_batch(mesh, sample(tables, data_key, config.batch))
        wanted = model.apply({"params": teacher}, images, spec.largest)

        def loss(params):
            outcome = forward_adaptive(
                model, params, images, policy.first_choice, policy.decide(policy_params, rule_key)
            )
            share, smoothing = config.distillation, config.label_smoothing
            value = losses.distillation_loss(outcome.logits, labels, wanted, share, smoothing)
            metrics = {
                "accuracy": losses.accuracy(outcome.logits, labels),
                "macs_kept": jnp.mean(jnp.asarray(macs(spec, outcome.structure).total, jnp.float32)) / full,
            }
            return value, metrics

        return optimizer.update_state(state, index, loss, transform, config.optimizer.ema)

    return jit_step(step, mesh)
