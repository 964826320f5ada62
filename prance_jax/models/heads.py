"""Both ends of the network: from pixels to tokens, and heads, from tokens to class logits.

`ViT` holds the weights and calls these functions with them.
"""

from __future__ import annotations

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from prance_jax.core.errors import UserError
from prance_jax.core.sizes import Size
from prance_jax.models.block import AffineWeights, NormWeights, apply_norm
from prance_jax.models.elastic import dense, mask_channels
from prance_jax.spec.model_spec import ModelSpec
from prance_jax.tokens.token_set import TokenSet, initial_tokens
from prance_jax.tokens.unmerge import CellSplit, unmerge


class EmbeddingWeights(NamedTuple):
    """Weights of the embedding.

    Attributes:
      patches: kernel [patch_values, C] and bias [C] of the patch embedding.
      class_tokens: [C] each.
      positions: [spec.positions, C].
    """

    patches: tuple[jax.Array, jax.Array]
    class_tokens: list[jax.Array]
    positions: jax.Array


def embed(
    spec: ModelSpec,
    weights: EmbeddingWeights,
    images: jax.Array,
    width: Size,
    added: jax.Array | None = None,
    scores: jax.Array | None = None,
) -> TokenSet:
    """Embeds patches, adds class tokens and positions.

    Args:
      spec: the network.
      weights: of the embedding.
      images: float [B, S, S, channels].
      width: channels of the embedding.
      added: [B, spec.positions, width], added to class tokens and patches; a whole cell gets the mean of its patches.
      scores: float32 [B, spec.cells]; None without `spec.refined_cells`.
    """
    split, batch, num_prefix = split_cells(spec, scores), images.shape[0], spec.class_tokens
    patches = pixels_to_patches(spec, images.astype(spec.dtype), split)
    x = dense(patches, *weights.patches, spec.patch_values, width, spec.space.max_width)
    channels = x.shape[-1]
    class_tokens = [
        jnp.broadcast_to(token[:channels].astype(x.dtype), (batch, 1, channels))
        for token in weights.class_tokens
    ]
    positions = weights.positions[None, :, :channels].astype(x.dtype)
    if split is not None:
        positions = split.arrange(positions, num_prefix)
        added = None if added is None else split.arrange(added, num_prefix)
    x = mask_channels(jnp.concatenate([*class_tokens, x], axis=1) + positions, width)
    tokens = initial_tokens(x if added is None else x + added, num_prefix)
    return tokens if split is None else tokens._replace(token_of_patch=split.token_of_patch(num_prefix))


class Exit(nn.Module):
    """A norm and a classifier before the end of the network (as in BranchyNet, arXiv 1709.01686).

    Attributes:
      spec: the network.
    """

    spec: ModelSpec

    def setup(self):
        self.norm = NormWeights(self.spec.space.super_width)
        self.head = AffineWeights(self.spec.space.super_width, self.spec.outputs)

    def __call__(self, tokens: TokenSet, width: Size) -> jax.Array:
        """Classifies images by CLS, or pixels by their patches.

        Args:
          tokens: tokens after the MLP of the layer before the exit.
          width: channels that count.

        Returns:
          Logits float32 [B, num_classes]; for pixels [B, S, S, num_classes].
        """
        if not self.spec.pixels:
            return classify(self.spec, self.norm, self.head, tokens.features[:, :1], width)[:, 0]
        return patches_to_pixels(self.spec, classify(self.spec, self.norm, self.head, unmerge(tokens), width))


def classify(
    spec: ModelSpec, final_norm: NormWeights, head: AffineWeights, features: jax.Array, width: Size
) -> jax.Array:
    """Applies the final norm and a linear head to any tokens.

    Args:
      spec: the network.
      final_norm: weights of the norm.
      head: weights of the head.
      features: [B, N, C].
      width: channels of the features that count.

    Returns:
      float32 [B, N, spec.outputs].
    """
    x = apply_norm(spec, final_norm, features, width, width).astype(jnp.float32)
    return dense(x, *head(), width, spec.outputs, spec.outputs)


def split_cells(spec: ModelSpec, scores: jax.Array | None) -> CellSplit | None:
    """Splits the `spec.refined_cells` cells with the highest scores; None if every patch is a token.

    Args:
      spec: the network.
      scores: float32 [B, spec.cells]; None without `spec.refined_cells`.

    Raises:
      UserError: the network needs scores and has none, or has scores that it does not need.
    """
    if (scores is None) != (spec.refined_cells is None):
        given = "no scores" if scores is None else "scores"
        raise UserError(
            f"a network with refined_cells={spec.refined_cells} got {given}; give scores of its cells exactly if "
            "refined_cells is a number (`spec.unrefined` is the same network without them)"
        )
    return None if scores is None else CellSplit.by_score(scores, spec.refined_cells)


def pixels_to_patches(spec: ModelSpec, images: jax.Array, split: CellSplit | None = None) -> jax.Array:
    """Flattens the patches of images, in the order of the grid: [B, P, patch_size^2 x channels].

    Args:
      spec: the network.
      images: [B, S, S, channels].
      split: cells that are split into patches; then the order is that of `CellSplit`, and a whole cell is shrunk to one
        patch by means of 2 x 2 pixels. None: every patch is a token.
    """
    if split is not None:
        half = images.shape[1] // 2
        shrunk = images.reshape(-1, half, 2, half, 2, spec.channels).mean(axis=(2, 4))
        return split.choose(pixels_to_patches(spec, images), pixels_to_patches(spec, shrunk))
    size, side = spec.patch_size, images.shape[1] // spec.patch_size
    patches = images.reshape(-1, side, size, side, size, spec.channels).transpose(0, 1, 3, 2, 4, 5)
    return patches.reshape(-1, side * side, spec.patch_values)


def patches_to_pixels(spec: ModelSpec, patch_logits: jax.Array) -> jax.Array:
    """Arranges the logits of patches as an image.

    Every patch has a linear map to its own pixels (Strudel et al. 2021, arXiv 2105.05633, section 3.2, with pixels in
    place of an interpolation).

    Args:
      spec: the network.
      patch_logits: [B, P, patch_size^2 x num_classes], patches in the order of the grid.

    Returns:
      [B, S, S, num_classes].
    """
    size, side = spec.patch_size, spec.image_size // spec.patch_size
    x = patch_logits.reshape(-1, side, side, size, size, spec.num_classes)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(-1, spec.image_size, spec.image_size, spec.num_classes)


def mean_patch_logits(
    spec: ModelSpec, final_norm: NormWeights, head: AffineWeights, tokens: TokenSet, width: Size
) -> jax.Array:
    """Summarises a head for pixels in one class distribution per image.

    Args:
      spec: the network.
      final_norm: weights of the norm.
      head: weights of the head.
      tokens: the tokens that remain; CLS is left out.
      width: channels of the tokens that count.

    Returns:
      float32 [B, num_classes]: the logarithm of the mean over patch tokens of the softmax of each one's logits, its
      pixels' logits averaged.
    """
    classes = spec.num_classes
    x = apply_norm(spec, final_norm, tokens.features, width, width).astype(jnp.float32)
    # The mean of a patch's pixels is linear: averaging the weights first costs patch_size^2 times less.
    kernel, bias = (leaf.reshape(*leaf.shape[:-1], -1, classes).mean(-2) for leaf in head())
    probabilities = jax.nn.softmax(dense(x, kernel, bias, width, classes, classes))[:, 1:]
    if tokens.valid is None:
        mean = probabilities.mean(axis=1)
    else:
        is_valid = tokens.valid[:, 1:, None]
        mean = jnp.sum(jnp.where(is_valid, probabilities, 0.0), axis=1) / jnp.maximum(is_valid.sum(axis=1), 1)
    return jnp.log(jnp.maximum(mean, 1e-9))
