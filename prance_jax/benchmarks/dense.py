"""The speed of the dense network against PyTorch's timm, in the same run, on the same cores."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prance_jax.core.errors import UserError
from prance_jax.evaluation.timing import time_interleaved
from prance_jax.models import forward
from prance_jax.models.vit import ViT
from prance_jax.spec.model_spec import ModelSpec

NAMES = ("deit_tiny", "deit_small", "deit_base")


def measure_dense(spec: ModelSpec, batches: tuple[int, ...], repeats: int = 7) -> list[dict[str, Any]]:
    """Measures the dense network in JAX and in timm, on random weights and images.

    timm runs eagerly, in inference mode, with PyTorch's fused attention, in the network's type, on a CUDA device if
    PyTorch has one.

    Args:
      spec: a network of one of the search spaces deit_tiny, deit_small, deit_base at 224 pixels.
      batches: batch sizes.
      repeats: interleaved repeats, of which medians are taken.

    Returns:
      For each batch size images per second of both, their ratio, and quartiles of the time in ms.

    Raises:
      UserError: timm has no such network, or is not installed.
    """
    if spec.space.name not in NAMES or (spec.image_size, spec.patch_size) != (224, 16):
        raise UserError(
            f"the comparison with timm needs a search space of {', '.join(NAMES)} at 224 pixels, not "
            f"{spec.space.name} at {spec.image_size}: --config.model.space.preset={NAMES[0]}"
        )
    model = ViT(spec)
    params = forward.init_params(model, jax.random.key(0))
    run = jax.jit(lambda params, images: model.apply({"params": params}, images, spec.largest))
    rows = []
    for batch in batches:
        images = np.random.default_rng(0).normal(size=(batch, 224, 224, 3)).astype(np.float32)
        device_images = jnp.asarray(images)
        programs = {
            "jax": lambda: run(params, device_images),
            "timm": _timm(f"{spec.space.name}_patch16_224", images, spec.dtype),
        }
        seconds = time_interleaved(programs, repeats)
        medians = {name: float(np.median(times)) for name, times in seconds.items()}
        rows.append(
            {
                "batch": batch,
                **{f"{name}_images_per_s": batch / median for name, median in medians.items()},
                "jax_over_timm": medians["timm"] / medians["jax"],
                "spread_ms": {
                    name: [1e3 * float(q) for q in np.quantile(times, (0.25, 0.75))]
                    for name, times in seconds.items()
                },
            }
        )
    return rows


def _timm(name: str, images: np.ndarray, dtype: str) -> Callable[[], Any]:
    try:
        import timm
        import torch
    except ImportError as error:
        raise UserError(f"the comparison needs PyTorch and timm, which are not installed ({error})") from None
    place = {"device": "cuda" if torch.cuda.is_available() else "cpu", "dtype": getattr(torch, dtype)}
    model = timm.create_model(name).eval().to(**place)
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous().to(**place)

    def run():
        with torch.inference_mode():
            return model(pixels).float().cpu().numpy()  # waits for the device

    return run
