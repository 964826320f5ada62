"""Dense prediction on reduced tokens: what stands for a patch that was dropped.

A network that says a class for every pixel is a `ViT` whose specification has `pixels`; it puts tokens back on the grid by
itself, a dropped patch as the nearest one that is left. Here are the other ways.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from prance_jax.models.forward import Params
from prance_jax.models.reduction import ScheduledReduction
from prance_jax.models.vit import ViT
from prance_jax.tokens.token_set import TokenSet
from prance_jax.tokens.unmerge import Fill, last_features, unmerge


def forward_segmenter(
    model: ViT, params: Params, images: jax.Array, reduction: ScheduledReduction, fill: Fill | None = None
) -> jax.Array:
    """Logits [B, S, S, num_classes], float32, of images [B, S, S, channels] on the largest structure with a reduction.

    Tokens are put back on the grid behind the last layer; merged ones stand for all their patches. fill: what stands for a
    dropped patch, the 'nearest' one that is left or 'zero'; None: what it was when it was dropped.
    """
    spec, held = model.spec, []

    def remembered(tokens: TokenSet, following: TokenSet) -> None:
        before = held[-1] if held else jnp.zeros_like(tokens.features[:, 1:])
        before = jnp.pad(before, ((0, 0), (0, spec.patches - before.shape[1]), (0, 0)))
        held.append(last_features(before, tokens, following))

    def run(model: ViT) -> jax.Array:
        watch = remembered if fill is None else None
        tokens = model.forward_reduced(images, spec.largest, reduction.layer_reduction(spec), watch).tokens
        grid = unmerge(tokens, fill or "nearest", held[-1] if held else None)
        return model.pixel_logits(grid, spec.largest.widths[-1])

    return model.apply({"params": params}, method=run)
