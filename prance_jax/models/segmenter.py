"""Dense prediction on reduced tokens: a class for every pixel."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from prance_jax.complexity import Macs, macs
from prance_jax.models.block import norm
from prance_jax.models.reduced import Reduction, follow
from prance_jax.models.vit import ViT
from prance_jax.spec import ModelSpec
from prance_jax.tokens import AttentionSignals, TokenSet
from prance_jax.tokens.unmerge import Fill, remember, unmerge


class Segmenter(nn.Module):
    """A ViT and a linear map from every patch to the classes of its pixels (Strudel et al. 2021, arXiv 2105.05633, section
    3.2, with pixels in place of an interpolation).

    Parameters: 'vit' as of `ViT`, 'pixels'. classes: of a pixel. The class token's classifier is there and not used.
    """

    spec: ModelSpec
    classes: int

    def setup(self):
        self.vit = ViT(self.spec)
        self.pixels = nn.Dense(self.spec.patch_size**2 * self.classes)

    def __call__(
        self, images: jax.Array, reduction: Reduction | None = None, fill: Fill | None = "nearest"
    ) -> jax.Array:
        """Logits [B, S, S, classes], float32, of images [B, S, S, channels].

        reduction: tokens are put back on the grid behind the last layer; merged ones stand for all their patches. fill: what
        stands for a dropped patch, the 'nearest' one that is left or 'zero'; None: what it was when it was dropped.
        """
        spec, held = self.spec, []
        inner = None if reduction is None else follow(spec, reduction)
        structure = spec.largest

        def between(layer: int, tokens: TokenSet, signals: AttentionSignals) -> TokenSet:
            if inner is None:
                return tokens
            following = inner(layer, tokens, signals)
            if fill is None and following is not tokens:
                before = held[-1] if held else jnp.zeros_like(tokens.features[:, 1:])
                before = jnp.pad(before, ((0, 0), (0, spec.patches - before.shape[1]), (0, 0)))
                held.append(remember(before, tokens, following))
            return following

        received = reduction is not None and reduction.method.received
        _, tokens = self.vit.reduced(images, structure, between, received, dense=True)
        grid = unmerge(tokens, fill or "nearest", held[-1] if held else None)
        width = structure.widths[-1]
        grid = norm(spec, self.vit.norm, grid, width, width).astype(jnp.float32)
        return self._spread(self.pixels(grid))

    def _spread(self, patches: jax.Array) -> jax.Array:
        """[B, P, patch^2 x classes] -> [B, S, S, classes]."""
        side, size = round(self.spec.patches**0.5), self.spec.patch_size
        x = patches.reshape(-1, side, side, size, size, self.classes).transpose(0, 1, 3, 2, 4, 5)
        return x.reshape(-1, side * size, side * size, self.classes)


def segmenter_macs(spec: ModelSpec, classes: int, reduction: Reduction | None = None) -> Macs:
    """Multiply-accumulates of one image, the head counted as the classifier."""
    counts = None if reduction is None else reduction.counts(spec, dense=True)
    found = macs(spec, spec.largest, counts=counts)
    return found._replace(classifier=spec.patches * spec.largest.widths[-1] * spec.patch_size**2 * classes)
