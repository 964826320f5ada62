"""AdamW or Muon with warm-up and cosine decay, clipping, and a moving average of the parameters."""

from __future__ import annotations

from typing import Any, Callable

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from prance_jax.config.stages import OptimizerConfig

Tree = Any


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """Clipping, then AdamW, or Muon with AdamW for what is no matrix; weight decay on matrices only.

    Muon (Jordan et al. 2024; `optax.contrib.muon`) orthogonalises the update of a matrix; on the small networks of the
    demo it needs about half the steps of AdamW. Its learning rate is that of the matrices; the rest gets
    `adam_share` of it. steps: of the training loop; with `accumulate` an update takes several.
    """
    steps = -(-steps // config.accumulate)
    warmup = min(config.warmup, max(steps - 1, 0))

    def schedule(peak: float) -> optax.Schedule:
        return optax.warmup_cosine_decay_schedule(0.0, peak, warmup, max(steps, warmup + 1))

    if config.name == "muon":
        rule = optax.contrib.muon(
            schedule(config.learning_rate),
            weight_decay=config.weight_decay,
            weight_decay_mask=decayed,
            adam_b2=config.beta2,
            adam_learning_rate=schedule(config.learning_rate * config.adam_share),
        )
    else:
        rule = optax.adamw(
            schedule(config.learning_rate), b2=config.beta2, weight_decay=config.weight_decay, mask=decayed
        )
    rule = optax.chain(optax.clip_by_global_norm(config.max_grad_norm), rule)
    if config.accumulate == 1:
        return rule
    return optax.MultiSteps(rule, config.accumulate).gradient_transformation()


def decayed(params: Tree) -> Tree:
    """True for the kernels of affine maps."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: jax.tree_util.keystr(path[-1:]) == "['kernel']", params
    )


def init_state(params: Tree, optimizer: optax.GradientTransformation) -> Tree:
    """The state of a training stage: a plain dict of parameters, their moving average and the optimizer's state."""
    return {"params": params, "ema": jax.tree.map(jnp.copy, params), "optimizer": optimizer.init(params)}


def update_state(
    state: Tree,
    step: jax.Array,
    loss: Callable[[Tree], tuple[jax.Array, dict]],
    optimizer: optax.GradientTransformation,
    ema: float,
) -> tuple[Tree, dict[str, jax.Array]]:
    """One step on `loss`, a function of the parameters that returns (loss, metrics).

    The average starts fast (decay (1 + step) / (10 + step)) so that a short run does not remember its initialisation.
    """
    (value, metrics), gradients = jax.value_and_grad(loss, has_aux=True)(state["params"])
    return apply_gradients(state, step, gradients, optimizer, ema), {
        "loss": value,
        "grad_norm": optax.global_norm(gradients),
        **metrics,
    }


def apply_gradients(
    state: Tree, step: jax.Array, gradients: Tree, optimizer: optax.GradientTransformation, ema: float
) -> Tree:
    """The state after a step along gradients; other entries of it stay as they are."""
    updates, optimizer_state = optimizer.update(gradients, state["optimizer"], state["params"])
    params = optax.apply_updates(state["params"], updates)
    decay = jnp.minimum(ema, (1.0 + step) / (10.0 + step))
    average = jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, state["ema"], params)
    return {**state, "params": params, "ema": average, "optimizer": optimizer_state}
