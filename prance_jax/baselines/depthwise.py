"""The pooling of PiT: a depthwise 3 x 3 convolution of stride 2 that widens the channels."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp


class DepthwisePool(nn.Module):
    """Halves a grid: [B, H, W, C] -> [B, (H + 1) // 2, (W + 1) // 2, width_out].

    Each channel makes width_out / C new ones, in order. Parameters and results are those of
    `nn.Conv(width_out, (3, 3), (2, 2), padding=1, feature_group_count=C)`. It is written as nine
    shifted products, since XLA on CPUs takes about a hundred times as long for the gradient of a
    grouped convolution.

    Attributes:
      width_out: channels after pooling, a multiple of those before.
    """

    width_out: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Pools a grid of patches [B, H, W, C]."""
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (3, 3, 1, self.width_out), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.width_out,), jnp.float32)
        height, width = (x.shape[1] + 1) // 2, (x.shape[2] + 1) // 2
        x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        x = jnp.repeat(x, self.width_out // x.shape[-1], axis=-1)
        return bias + sum(
            x[:, row : row + 2 * height - 1 : 2, column : column + 2 * width - 1 : 2] * kernel[row, column, 0]
            for row in range(3)
            for column in range(3)
        )
