"""AdamW or Muon with warm-up, cosine decay, clipping, and a moving average of the parameters."""

from __future__ import annotations

from typing import Any, Callable

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from prance_jax.config.stages import OptimizerConfig
from prance_jax.core.losses import in_32_bits

Tree = Any


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """Builds gradient clipping followed by AdamW, or by Muon with AdamW for all but matrices.

    Muon orthogonalises the update of a matrix. On the small networks of the demo it needs about half
    the steps of AdamW. Its learning rate is that of the matrices; other parameters have `adam_share`
    of it. Weight decay acts on matrices only.

    Args:
      config: the optimizer's settings.
      steps: steps of the training loop; with `accumulate` an update takes several.

    Reference: Muon, Jordan et al. 2024; `optax.contrib.muon`.
    """
    steps = -(-steps // config.accumulate)
    warmup = min(config.warmup, max(steps - 1, 0))

    def schedule(peak: float) -> optax.Schedule:
        return optax.warmup_cosine_decay_schedule(0.0, peak, warmup, max(steps, warmup + 1))

    if config.name == "muon":
        transform = optax.contrib.muon(
            schedule(config.learning_rate),
            weight_decay=config.weight_decay,
            weight_decay_mask=decayed,
            adam_b2=config.beta2,
            adam_learning_rate=schedule(config.learning_rate * config.adam_share),
        )
    else:
        transform = optax.adamw(
            schedule(config.learning_rate), b2=config.beta2, weight_decay=config.weight_decay, mask=decayed
        )
    transform = optax.chain(optax.clip_by_global_norm(config.max_grad_norm), transform)
    if config.accumulate > 1:
        transform = optax.MultiSteps(transform, config.accumulate).gradient_transformation()
    return in_32_bits(transform)


def decayed(params: Tree) -> Tree:
    """Returns a tree with True for the kernels of affine maps, which have weight decay."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: jax.tree_util.keystr(path[-1:]) == "['kernel']", params
    )


def init_state(params: Tree, optimizer: optax.GradientTransformation) -> Tree:
    """Returns the initial state of a training stage.

    Args:
      params: initial parameters.
      optimizer: from `make_optimizer`.

    Returns:
      A dict of parameters ('params'), their moving average ('ema') and the optimizer's state
      ('optimizer').
    """
    return {"params": params, "ema": jax.tree.map(jnp.copy, params), "optimizer": optimizer.init(params)}


def update_state(
    state: Tree,
    step: jax.Array,
    loss: Callable[[Tree], tuple[jax.Array, dict]],
    optimizer: optax.GradientTransformation,
    ema: float,
) -> tuple[Tree, dict[str, jax.Array]]:
    """Takes one training step.

    Args:
      state: from `init_state`.
      step: int32 scalar, from 0.
      loss: params -> (loss, metrics).
      optimizer: from `make_optimizer`.
      ema: decay of the moving average of the parameters. The first steps use
        (1 + step) / (10 + step) if that is smaller, so a short run forgets its initial parameters.

    Returns:
      The next state; the metrics with 'loss' and 'grad_norm' added.
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
    """Returns the state after one update; its other entries stay as they are.

    Args:
      state: from `init_state`.
      step: int32 scalar, from 0.
      gradients: gradients of the parameters.
      optimizer: from `make_optimizer`.
      ema: decay of the moving average, see `update_state`.
    """
    updates, optimizer_state = optimizer.update(gradients, state["optimizer"], state["params"])
    params = optax.apply_updates(state["params"], updates)
    step = jnp.asarray(step, jnp.float32)
    decay = jnp.minimum(ema, (1.0 + step) / (10.0 + step))
    average = jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, state["ema"], params)
    return {**state, "params": params, "ema": average, "optimizer": optimizer_state}
