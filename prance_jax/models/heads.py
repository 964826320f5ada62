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
from prance_jax.models.elastic import AffineWeights, NormWeights, apply_norm, dense, mask_channels
from prance_jax.spec.model_spec import ModelSpec
from prance_jax.tokens.token_set import TokenSet, initial_tokens
from prance_jax.tokens.unmerge import CellSplit, unmerge


class EmbeddingWeights(NamedTuple):
    """Weights of the embedding.

    Attributes:
      patches: kernel [patch_values, C] and bias [C] of the patch embedding.
      prefix: prefix tokens, [1 or more, C] each.
      positions: [spec.positions, C]; None without.
      norm: of `Architecture.pre_norm`; None without.
    """

    patches: tuple[jax.Array, jax.Array]
    prefix: list[jax.Array]
    positions: jax.Array | None
    norm: NormWeights | None


def embed(
    spec: ModelSpec,
    weights: EmbeddingWeights,
    images: jax.Array,
    width: Size,
    added: jax.Array | None = None,
    scores: jax.Array | None = None,
) -> TokenSet:
    """Embeds patches, adds prefix tokens and positions.

    Args:
      spec: the network.
      weights: of the embedding.
      images: float [B, S, S, channels].
      width: channels of the embedding.
      added: [B, spec.all_tokens, width], added to prefix tokens and patches; a whole cell gets the mean of its patches.
      scores: float32 [B, spec.cells]; None without `spec.refined_cells`.
    """
    split, batch, num_prefix = split_cells(spec, scores), images.shape[0], spec.num_prefix_tokens
    patches = pixels_to_patches(spec, images.astype(spec.dtype), split)
    x = dense(patches, *weights.patches, spec.patch_values, width, spec.space.max_width)
    channels = x.shape[-1]
    prefix = [
        jnp.broadcast_to(part[:, :channels].astype(x.dtype), (batch, len(part), channels))
        for part in weights.prefix
    ]
    x = jnp.concatenate([*prefix, x], axis=1)
    if weights.positions is not None:
        positions = weights.positions[None, :, :channels].astype(x.dtype)
        if spec.architecture.no_embed_class:
            positions = jnp.pad(positions, ((0, 0), (num_prefix, 0), (0, 0)))
        x = x + (positions if split is None else split.arrange(positions, num_prefix))
    x = mask_channels(x, width)
    if added is not None:
        x = x + (added if split is None else split.arrange(added, num_prefix))
    if weights.norm is not None:
        x = apply_norm(spec, weights.norm, x, width, width)
    tokens = initial_tokens(x, num_prefix)
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
        """Classifies images by CLS or the mean of the patches, or pixels by their patches.

        Args:
          tokens: tokens after the MLP of the layer before the exit.
          width: channels that count.

        Returns:
          Logits float32 [B, num_classes]; for pixels [B, S, S, num_classes].
        """
        if not self.spec.pixels:
            return apply_head(self.spec, self.head, pool(self.spec, self.norm, tokens, width), width)[:, 0]
        grid = unmerge(tokens, grid=self.spec.grid)
        return patches_to_pixels(self.spec, classify(self.spec, self.norm, self.head, grid, width))


def mean_of_patches(spec: ModelSpec, tokens: TokenSet, features: jax.Array) -> jax.Array:
    """Averages the tokens behind the prefix, by their sizes where these are tracked: float32 [B, 1, C].

    Args:
      spec: the network.
      tokens: gives sizes and validity.
      features: [B, N, C], of the tokens.
    """
    weights = tokens.sizes[:, spec.num_prefix_tokens :, None]
    # Features of invalid tokens are arbitrary: they are left out, not multiplied by zero.
    x = jnp.where(weights > 0, features[:, spec.num_prefix_tokens :].astype(jnp.float32), 0.0)
    total = weights.sum(axis=1, keepdims=True)
    return jnp.sum(x * weights, axis=1, keepdims=True) / jnp.where(total > 0, total, 1.0)


def pool(
    spec: ModelSpec, final_norm: NormWeights, tokens: TokenSet, width: Size, class_token: int = 0
) -> jax.Array:
    """Returns what a classifier reads, after the final norm: a class token, or the mean of the patches.

    Args:
      spec: the network.
      final_norm: weights of the norm.
      tokens: tokens after the last MLP.
      width: channels that count.
      class_token: index of the class token, if one is read.

    Returns:
      [B, 1, C]; the mean is float32.
    """
    if spec.architecture.global_pool == "token":
        x = tokens.features[:, class_token : class_token + 1]
        return apply_norm(spec, final_norm, x, width, width)
    if spec.architecture.fc_norm:
        return apply_norm(spec, final_norm, mean_of_patches(spec, tokens, tokens.features), width, width)
    return mean_of_patches(spec, tokens, apply_norm(spec, final_norm, tokens.features, width, width))


def apply_head(spec: ModelSpec, head: AffineWeights | None, x: jax.Array, width: Size) -> jax.Array:
    """Applies a linear head in float32; without one returns what it would read.

    Args:
      spec: the network.
      head: weights of the head; None if `spec.num_classes` is 0.
      x: [B, N, C], after the final norm.
      width: channels that count.

    Returns:
      float32 [B, N, spec.outputs], or [B, N, C].
    """
    x = x.astype(jnp.float32)
    return x if head is None else dense(x, *head(), width, spec.outputs, spec.outputs)


def classify(
    spec: ModelSpec, final_norm: NormWeights, head: AffineWeights | None, features: jax.Array, width: Size
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
    return apply_head(spec, head, apply_norm(spec, final_norm, features, width, width), width)


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
    size = spec.patch_size
    rows, columns = images.shape[1] // size, images.shape[2] // size
    patches = images.reshape(-1, rows, size, columns, size, spec.channels).transpose(0, 1, 3, 2, 4, 5)
    return patches.reshape(-1, rows * columns, spec.patch_values)


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
    x = patch_logits.reshape(-1, *spec.grid, spec.patch_size, spec.patch_size, spec.num_classes)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(-1, *spec.image_sides, spec.num_classes)


def mean_patch_logits(
    spec: ModelSpec, final_norm: NormWeights, head: AffineWeights, tokens: TokenSet, width: Size
) -> jax.Array:
    """Summarises a head for pixels in one class distribution per image.

    Args:
      spec: the network.
      final_norm: weights of the norm.
      head: weights of the head.
      tokens: the tokens that remain; prefix tokens are left out.
      width: channels of the tokens that count.

    Returns:
      float32 [B, num_classes]: the logarithm of the mean over patch tokens of the softmax of each one's logits, its
      pixels' logits averaged.
    """
    classes = spec.num_classes
    x = apply_norm(spec, final_norm, tokens.features, width, width).astype(jnp.float32)
    # The mean of a patch's pixels is linear: averaging the weights first costs patch_size^2 times less.
    kernel, bias = (leaf.reshape(*leaf.shape[:-1], -1, classes).mean(-2) for leaf in head())
    probabilities = jax.nn.softmax(dense(x, kernel, bias, width, classes, classes))[
        :, spec.num_prefix_tokens :
    ]
    if tokens.valid is None:
        mean = probabilities.mean(axis=1)
    else:
        is_valid = tokens.valid[:, spec.num_prefix_tokens :, None]
        mean = jnp.sum(jnp.where(is_valid, probabilities, 0.0), axis=1) / jnp.maximum(is_valid.sum(axis=1), 1)
    return jnp.log(jnp.maximum(mean, 1e-9))
