"""Fine-tuning while channels are pruned (CDCP), with or without token reduction.

See `baselines.channel_gates`.
"""

from __future__ import annotations

import functools
from typing import Any, Callable

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from prance_jax.baselines.channel_gates import Gates, all_gates_open, apply_gates, choose_gates, gate_costs
from prance_jax.config.comparison import ChannelPruningConfig
from prance_jax.config.stages import FinetuneConfig
from prance_jax.core import losses
from prance_jax.core.sharding import constrain_batch, jit_step
from prance_jax.models.reduction import ScheduledReduction, forward_reduced
from prance_jax.models.vit import ViT
from prance_jax.spec.model_spec import ModelSpec
from prance_jax.training import optimizer
from prance_jax.training.stages.baseline_finetune import PROGRAMS
from prance_jax.training.stages.pretrain import Sample

Tree = Any


def init_channel_pruning(spec: ModelSpec, params: Tree, config: FinetuneConfig) -> Tree:
    """Returns the initial state: all gates open, their importance zero.

    Args:
      spec: the network.
      params: parameters of the dense network; they are copied.
      config: settings of the fine-tuning.
    """
    state = optimizer.init_state(
        jax.tree.map(jnp.copy, params), optimizer.make_optimizer(config.optimizer, config.steps)
    )
    gates = all_gates_open(spec)
    return {**state, "gates": gates, "scores": jax.tree.map(jnp.zeros_like, gates)}


@functools.lru_cache(maxsize=PROGRAMS)
def prune_step(
    spec: ModelSpec,
    config: FinetuneConfig,
    prune: ChannelPruningConfig,
    keep: float,
    reduction: ScheduledReduction | None,
    sample: Sample,
    mesh: Mesh | None = None,
) -> Callable:
    """Compiles the training step.

    The importance of a gate, open or closed, is the moving average of |dL/dgate|. Every `prune.every`
    steps the open gates are chosen again, and their share falls from 1 to `keep` as a cube. After
    `prune.freeze` of the steps the gates stay as they are, and the remaining network is fine-tuned.

    Args:
      spec: the network.
      config: settings of the fine-tuning.
      prune: settings of the pruning.
      keep: share of the channels' MACs that remains at the end, see
        `baselines.channel_gates.gate_share_at_macs`.
      reduction: token reduction during training; None for none.
      sample: (tables, key, batch) -> (images, labels), of the data source.
      mesh: devices; None for one device.

    Returns:
      Compiled (state, step, key, tables, teacher) -> (state, metrics). `teacher` has the parameters of
      the dense network. The state is donated.
    """
    model, transform = ViT(spec), optimizer.make_optimizer(config.optimizer, config.steps)
    last = int(prune.freeze * config.steps)
    costs = gate_costs(spec, reduction)

    def step(state, index, key, tables, teacher):
        images, labels = constrain_batch(mesh, sample(tables, jax.random.fold_in(key, index), config.batch))
        teacher_logits = model.apply({"params": teacher}, images, spec.largest)

        def loss(params: Tree, gates: Gates):
            gated = apply_gates(params, gates)
            if reduction is None:
                logits = model.apply({"params": gated}, images, spec.largest)
            else:
                logits = forward_reduced(model, gated, images, spec.largest, reduction).logits
            value = losses.distillation_loss(
                logits, labels, teacher_logits, config.distillation, config.label_smoothing
            )
            return value, losses.accuracy(logits, labels)

        run = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
        (value, accuracy), (gradients, gate_gradients) = run(state["params"], state["gates"])
        scores = jax.tree.map(
            lambda old, new: prune.memory * old + (1 - prune.memory) * jnp.abs(new),
            state["scores"],
            gate_gradients,
        )
        next_state = optimizer.apply_gradients(state, index, gradients, transform, config.optimizer.ema)
        done = jnp.clip((index + 1) / max(last, 1), 0.0, 1.0)
        share = keep + (1 - keep) * (1 - done) ** 3
        due = ((index + 1) % prune.every == 0) & (index + 1 < last) | (index + 1 == last)
        gates = jax.lax.cond(
            due, lambda: choose_gates(scores, share, costs, prune.multiple), lambda: state["gates"]
        )
        open_share = jnp.mean(jnp.concatenate([gate.reshape(-1) for gate in gates]))
        metrics = {"loss": value, "accuracy": accuracy, "open": open_share}
        metrics["grad_norm"] = optax.global_norm(gradients)
        return {**next_state, "gates": gates, "scores": scores}, metrics

    return jit_step(step, mesh)
