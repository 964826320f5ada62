"""Do masked, compact and batched execution agree on this device?"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prance_jax.adaptive.choose_buckets import even_buckets
from prance_jax.adaptive.executor import serve_adaptive
from prance_jax.benchmarks.cascade import draw_stops, given_actions, stop_actions, two_look_cascade
from prance_jax.benchmarks.serving import even_work
from prance_jax.cascade.executor import serve_cascade
from prance_jax.cascade.forward import forward_cascade
from prance_jax.cascade.looks import init_params as init_cascade
from prance_jax.models.forward import fixed_decisions, forward_adaptive, init_params
from prance_jax.models.vit import ViT
from prance_jax.spec.model_spec import ModelSpec

# Of the largest logit. Products in float32 are computed at the highest precision, see `check`.
TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2}


def check(spec: ModelSpec, dtype: str, batch: int = 16) -> dict[str, Any]:
    """Compares executions of a network with random weights, and of a cascade of two looks.

    Accelerators shorten the factors of float32 products by default; here they do not.

    Args:
      spec: the network.
      dtype: of the computation.
      batch: number of images.

    Returns:
      Largest difference over the largest logit: masked against batched execution of images of different structures
      (`executor`), masked against compact at a static structure (`compact`), and masked against batched execution of a
      cascade (`cascade`); share of the images with the same prediction; whether all are within `TOLERANCE`.
    """
    spec = dataclasses.replace(spec, dtype=dtype)
    with jax.default_matmul_precision("highest" if dtype == "float32" else "default"):
        pairs = {
            "executor": _executor(spec, batch),
            "compact": _compact(spec, batch),
            "cascade": _cascade(spec, batch),
        }
    figures = {
        name: float(np.abs(left - right).max() / np.abs(left).max()) for name, (left, right) in pairs.items()
    }
    same = [float((left.argmax(-1) == right.argmax(-1)).mean()) for left, right in pairs.values()]
    is_within = all(value <= TOLERANCE[dtype] for value in figures.values())
    return {**figures, "same_prediction": min(same), "tolerance": TOLERANCE[dtype], "passed": is_within}


def _executor(spec: ModelSpec, batch: int) -> tuple[np.ndarray, np.ndarray]:
    buckets = even_buckets(spec, spec.largest.groups[0])
    params, work = init_params(ViT(spec), jax.random.key(0)), even_work(buckets, batch)

    @jax.jit
    def masked(params, structure, images):
        decide = work.policy.decide(structure, jax.random.key(0))
        return forward_adaptive(ViT(spec), params, images, buckets.first_choice, decide).logits

    @jax.jit
    def batched(params, structure, images):
        return serve_adaptive(buckets, work.policy, params, structure, images, jax.random.key(0), 4).logits

    arguments = params, work.policy_params, work.images
    return np.asarray(masked(*arguments)), np.asarray(batched(*arguments))


def _compact(spec: ModelSpec, batch: int) -> tuple[np.ndarray, np.ndarray]:
    space = spec.space
    width, ratio = space.widths[len(space.widths) // 2], space.ratios[0]
    structure = space.uniform(width, ratio, (0.6,) * spec.rates)
    per_image = jax.tree.map(
        lambda size: jnp.full(batch, size, "float32" if isinstance(size, float) else "int32"), structure
    )
    params = init_params(ViT(spec), jax.random.key(0))
    images = jax.random.normal(jax.random.key(1), (batch, *spec.image_shape), jnp.float32)

    def run(params, images, structure):
        first, decide = structure.groups[0], fixed_decisions(structure)
        return forward_adaptive(ViT(spec), params, images, first, decide).logits

    masked = jax.jit(run)(params, images, per_image)
    compact = jax.jit(lambda params, images: run(params, images, structure))(params, images)
    return np.asarray(masked), np.asarray(compact)


def _cascade(spec: ModelSpec, batch: int) -> tuple[np.ndarray, np.ndarray]:
    cascade = two_look_cascade(spec)
    params = init_cascade(cascade.spec, jax.random.key(0))
    images = jax.random.normal(jax.random.key(1), (batch, *spec.image_shape), jnp.float32)
    actions = jnp.asarray(stop_actions(cascade, draw_stops((0.3, 0.4, 0.3), batch)))
    masked = jax.jit(
        lambda params, images, actions: (
            forward_cascade(cascade, params, images, given_actions(actions)).logits
        )
    )
    batched = jax.jit(
        lambda params, images, actions: (
            serve_cascade(cascade, params, images, given_actions(actions), 4).logits
        )
    )
    arguments = params, images, actions
    return np.asarray(masked(*arguments)), np.asarray(batched(*arguments))
