"""Is the dense baseline a good one? Ours against PyTorch's timm in the same run, on the same cores."""

from __future__ import annotations

from typing import Any, Callable

import jax
import jax.numpy as jnp
import numpy as np

from prance_jax.core.errors import UserError
from prance_jax.core.timing import time_interleaved
from prance_jax.models import forward
from prance_jax.models.vit import ViT
from prance_jax.spec.model_spec import ModelSpec

NAMES = ("deit_tiny", "deit_small", "deit_base")


def measure_dense(spec: ModelSpec, batches: tuple[int, ...], repeats: int = 7) -> list[dict[str, Any]]:
    """Images per second of the dense network by JAX and by timm (eager, inference mode, float32), for each batch.

    spec: a network of one of the search spaces deit_tiny, deit_small, deit_base at 224 pixels. Random weights and images;
    interleaved repeats, medians. Raises UserError where it is another network, or timm is not installed.
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
        ours = jnp.asarray(images)
        programs = {
            "jax": lambda: run(params, ours),
            "timm": _timm(f"{spec.space.name}_patch16_224", images),
        }
        taken = time_interleaved(programs, repeats)
        rows.append(
            {
                "batch": batch,
                **{f"{name}_images_per_s": batch / float(np.median(times)) for name, times in taken.items()},
                "jax_over_timm": float(np.median(taken["timm"]) / np.median(taken["jax"])),
                "spread_ms": {
                    name: [1e3 * float(q) for q in np.quantile(times, (0.25, 0.75))]
                    for name, times in taken.items()
                },
            }
        )
    return rows


def _timm(name: str, images: np.ndarray) -> Callable[[], Any]:
    try:
        import timm
        import torch
    except ImportError as error:
        raise UserError(f"the comparison needs PyTorch and timm, which are not installed ({error})") from None
    model = timm.create_model(name).eval()
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()

    def run():
        with torch.inference_mode():
            return model(pixels).numpy()

    return run
