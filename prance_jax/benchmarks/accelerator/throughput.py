"""Images per second of the dense network, forward and in training, as a share of what the device can compute."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prance_jax.benchmarks.serving import peak_memory
from prance_jax.config.stages import DenseConfig
from prance_jax.data.noise import NoiseConfig, load_noise_source
from prance_jax.evaluation.timing import time_interleaved
from prance_jax.models.forward import init_params
from prance_jax.models.vit import ViT
from prance_jax.spec.macs import macs
from prance_jax.spec.model_spec import ModelSpec
from prance_jax.training.stages.pretrain import dense_step, init_pretrain


def measure_peak(dtype: str, side: int, repeats: int) -> dict[str, Any]:
    """Measures the operations per second of a product of square matrices, which MFU is a share of.

    Args:
      dtype: of the factors.
      side: rows and columns of the matrices.
      repeats: measured calls, of which the fastest counts.

    Returns:
      `tflops` per second.
    """
    left, right = (jax.random.normal(jax.random.key(seed), (side, side), dtype) for seed in (0, 1))
    product = jax.jit(jnp.matmul)
    seconds = min(time_interleaved({"product": lambda: product(left, right)}, repeats)["product"])
    return {"tflops": 2 * side**3 / seconds / 1e12}


def measure_forward(spec: ModelSpec, batch: int, repeats: int, peak_tflops: float) -> dict[str, Any]:
    """Measures the dense network's forward pass.

    Args:
      spec: the network.
      batch: images per call.
      repeats: measured calls, of which the median counts.
      peak_tflops: from `measure_peak`.

    Returns:
      Images per second, MFU (two operations per MAC, over the peak), and peak memory in MiB.
    """
    params = init_params(ViT(spec), jax.random.key(0))
    images = jax.random.normal(jax.random.key(1), (batch, *spec.image_shape), jnp.float32)
    run = lambda params, images: ViT(spec).apply({"params": params}, images, spec.largest)
    program = jax.jit(run).lower(params, images).compile()
    seconds = time_interleaved({"forward": lambda: program(params, images)}, repeats)["forward"]
    return _figures(spec, batch, seconds, 2, peak_tflops, program)


def measure_training(spec: ModelSpec, batch: int, repeats: int, peak_tflops: float) -> dict[str, Any]:
    """Measures a training step of the dense network: augmentation, forward, backward and AdamW.

    Args:
      spec: the network.
      batch: images per step.
      repeats: measured steps, of which the median counts.
      peak_tflops: from `measure_peak`.

    Returns:
      As `measure_forward`; MFU with six operations per MAC, recomputation not counted.
    """
    source = load_noise_source(NoiseConfig(spec.image_size, spec.channels, spec.num_classes, images=batch))
    config = DenseConfig(batch=batch)
    state, key = init_pretrain(spec, config, jax.random.key(0)), jax.random.key(1)
    index = jnp.int32(0)
    program = dense_step(spec, config, source.sample).lower(state, index, key, source.tables).compile()

    def step():
        nonlocal state  # the step takes its state's memory
        state, metrics = program(state, index, key, source.tables)
        return metrics

    seconds = time_interleaved({"step": step}, repeats)["step"]
    return _figures(spec, batch, seconds, 6, peak_tflops, program)


def _figures(spec, batch, seconds, operations, peak_tflops, program) -> dict[str, Any]:
    median = float(np.median(seconds))
    flops = operations * macs(spec, spec.largest).total * batch / median
    return {
        "images_per_s": batch / median,
        "mfu": flops / 1e12 / peak_tflops,
        "batch": batch,
        "peak_mb": peak_memory(program),
        "spread_ms": [float(1e3 * q) for q in np.quantile(seconds, (0.25, 0.75))],
    }
