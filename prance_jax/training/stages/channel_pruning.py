"""Fine-tuning while channels are pruned (CDCP), with or without token reduction; see `channels.gates`."""

from __future__ import annotations

import functools
from typing import Any, Callable

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from prance_jax.baselines.channel_gates import Gates, all_gates_open, apply_gates, choose_gates, gate_costs
from prance_jax.config.comparison import PruneConfig
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
    """All gates open, and nothing known of their importance."""
    state = optimizer.init_state(
        jax.tree.map(jnp.copy, params), optimizer.make_optimizer(config.optimizer, config.steps)
    )
    gates = all_gates_open(spec)
    return {**state, "gates": gates, "scores": jax.tree.map(jnp.zeros_like, gates)}


@functools.lru_cache(maxsize=PROGRAMS)
def prune_step(
    spec: ModelSpec,
    config: FinetuneConfig,
    prune: PruneConfig,
    keep: float,
    reduction: ScheduledReduction | None,
    sample: Sample,
    mesh: Mesh | None = None,
) -> Callable:
    """Compiled (state, step, key, tables, teacher) -> (state, metrics).

    keep: share of the channels' multiply-accumulates that is left in the end (`channels.gates.keep_for`). The importance of a
    gate is the moving average of |dL/dgate|, for closed ones too. Which are open is chosen anew every `prune.every` steps,
    the share falling from 1 as a cube, until `prune.freeze` of the steps; the rest tunes what is left.
    """
    model, transform = ViT(spec), optimizer.make_optimizer(config.optimizer, config.steps)
    last = int(prune.freeze * config.steps)
    costs = gate_costs(spec, reduction)

    def step(state, index, key, tables, teacher):
        images, labels = constrain_batch(mesh, sample(tables, jax.random.fold_in(key, index), config.batch))
        wanted = model.apply({"params": teacher}, images, spec.largest)

        def loss(params: Tree, gates: Gates):
            open_only = apply_gates(params, gates)
            if reduction is None:
                logits = model.apply({"params": open_only}, images, spec.largest)
            else:
                logits = forward_reduced(model, open_only, images, spec.largest, reduction).logits
            value = losses.distillation_loss(
                logits, labels, wanted, config.distillation, config.label_smoothing
            )
            return value, losses.accuracy(logits, labels)

        run = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
        (value, accuracy), (gradients, moves) = run(state["params"], state["gates"])
        scores = jax.tree.map(
            lambda old, new: prune.memory * old + (1 - prune.memory) * jnp.abs(new), state["scores"], moves
        )
        following = optimizer.apply_gradients(state, index, gradients, transform, config.optimizer.ema)
        done = jnp.clip((index + 1) / max(last, 1), 0.0, 1.0)
        share = keep + (1 - keep) * (1 - done) ** 3
        due = ((index + 1) % prune.every == 0) & (index + 1 < last) | (index + 1 == last)
        gates = jax.lax.cond(
            due, lambda: choose_gates(scores, share, costs, prune.multiple), lambda: state["gates"]
        )
        open_share = jnp.mean(jnp.concatenate([gate.reshape(-1) for gate in gates]))
        metrics = {"loss": value, "accuracy": accuracy, "open": open_share}
        metrics["grad_norm"] = optax.global_norm(gradients)
        return {**following, "gates": gates, "scores": scores}, metrics

    return jit_step(step, mesh)
