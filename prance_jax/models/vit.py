"""The meta-network: a Vision Transformer that holds every structure of its search space (PRANCE, section 3.1).

`token_steps.forward_layers` is the one loop over layers. The methods here choose layers, sizes and token steps.

A decision needs the keys of the layer before it. So a group ends after the attention of its last layer; the MLP of
that layer runs with the next group, at the width that the decision chose:

    forward_first_group  embedding, group 0 up to the attention of its last layer
    forward_group        MLP of the layer before, then group g up to the attention of its last layer   (g = 1, 2, ...)
    forward_head         MLP of the last layer, norm, classifier; for pixels, of the patches back on the grid

A classifier may read class tokens alone. Then only they attend in the last layer, see `ModelSpec.num_queries`.

"""

from __future__ import annotations

import functools
from typing import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

from prance_jax.core.checks import check_images
from prance_jax.core.sizes import Size
from prance_jax.models import heads
from prance_jax.models.block import Block
from prance_jax.models.elastic import AffineWeights, NormWeights, sincos_init
from prance_jax.models.outputs import GroupState, ViTOutput
from prance_jax.models.token_steps import (
    LayerReduction,
    LayerSizes,
    TokenStep,
    Watch,
    decision_step,
    forward_layers,
    layer_sizes,
    scheduled_step,
)
from prance_jax.spec.model_spec import ModelSpec
from prance_jax.spec.structure import GroupChoice, Structure
from prance_jax.tokens.token_set import TokenSet, leading_tokens
from prance_jax.tokens.unmerge import unmerge, values_of_patches


class ViT(nn.Module):
    """Elastic ViT: by default class token, learned absolute positions, exact GELU; see `Architecture`.

    Attributes:
      spec: shapes and semantics.
      pretrained_cfg: a `PretrainedConfig`.
    """

    spec: ModelSpec
    pretrained_cfg: object = None

    def setup(self):
        spec, space = self.spec, self.spec.space
        width = space.super_width
        self.patch_embed = AffineWeights(spec.patch_values, width, nn.initializers.lecun_normal())
        parts, grid_init = spec.architecture, functools.partial(sincos_init, grid=spec.grid)
        token = lambda name, *rows: self.param(
            name, nn.initializers.truncated_normal(0.02, "float32"), (*rows, width)
        )
        # In this order, so that a seed gives the weights that it always gave.
        prefix = [token("cls_token")] if parts.class_token else []
        self.pos_embed = (
            self.param("pos_embed", grid_init, (spec.positions, width)) if spec.positions else None
        )
        prefix += [token("dist_token")] if spec.distilled else []
        self.prefix = prefix + ([token("reg_token", parts.reg_tokens)] if parts.reg_tokens else [])
        self.norm_pre = NormWeights(width) if parts.pre_norm else None
        self.blocks = [
            Block(
                spec,
                layer,
                maps_residual=spec.residual_maps and layer + 1 in space.first_layers,
                name=f"block_{layer}",
            )
            for layer in range(space.depth)
        ]
        self.norm = NormWeights(width)
        self.head = AffineWeights(width, spec.outputs) if spec.num_classes else None
        self.exits = [heads.Exit(spec, name=f"exit_{group}") for group in spec.exits]
        self.head_dist = AffineWeights(width, spec.outputs) if spec.distilled and spec.num_classes else None

    def __call__(self, images: jax.Array, structure: Structure | None = None) -> jax.Array:
        """Classifies images under a structure that is known beforehand.

        Args:
          images: float [B, S, S, channels], normalised as in training.
          structure: static (compact) or per image (masked); by default the largest.

        Returns:
          Logits float32 [B, num_classes]; for pixels [B, S, S, num_classes].
        """
        structure = self.spec.largest if structure is None else structure
        state = self.forward_first_group(images, structure.groups[0])
        for group in range(1, self.spec.space.groups):
            state = self.forward_group(state, structure.groups[group], group)
        return self.forward_head(state)

    def apply_last_mlp(
        self, tokens: TokenSet, size: LayerSizes, only_read: bool = False, group: int = -1
    ) -> TokenSet:
        """Applies the MLP of the last layer of a group.

        Args:
          tokens: tokens after the attention of that layer.
          size: sizes of the layer.
          only_read: apply it only to the tokens that a head reads.
          group: index of the group; by default the last one.
        """
        if only_read and not self.spec.reads_all_tokens:
            tokens = leading_tokens(tokens, self.spec.class_tokens)
        block = self.blocks[self.spec.space.last_layers[group]]
        return block.apply_mlp(tokens, size.width, size.mlp_dim, size.width)

    def forward_reduced(
        self,
        images: jax.Array,
        structure: Structure,
        layer_reduction: LayerReduction,
        watch: Watch | None = None,
    ) -> ViTOutput:
        """Classifies images under a static structure with a token method in its layers.

        Args:
          images: float [B, S, S, channels].
          structure: static; its keep rates are not used.
          layer_reduction: method and number of tokens in every layer.
          watch: called with the tokens before and after every reduction.
        """
        sizes, width = layer_sizes(structure), structure.widths[-1]
        step = scheduled_step(self.spec, layer_reduction, watch)
        layers = range(self.spec.space.depth)
        tokens = self.initial_tokens(images, structure.widths[0])
        tokens, _, _ = forward_layers(self.blocks, tokens, layers, sizes, dict.fromkeys(layers, step))
        last = self.apply_last_mlp(tokens, sizes[-1], only_read=self.spec.reads_class_tokens_only)
        class_token = heads.pool(self.spec, self.norm, last, width)[:, 0]
        return ViTOutput(self.head_logits(last, width), last if self.spec.pixels else tokens, class_token)

    def forward_first_group(
        self,
        images: jax.Array,
        choice: GroupChoice,
        added: jax.Array | None = None,
        scores: jax.Array | None = None,
    ) -> GroupState:
        """Embeds images and runs group 0.

        Args:
          images: float [B, S, S, channels].
          choice: structure of group 0; it has no keep rates.
          added: see `initial_tokens`.
          scores: see `initial_tokens`.
        """
        return self._forward_group(self.initial_tokens(images, choice.widths[0], added, scores), choice, 0)

    def forward_group(self, state: GroupState, choice: GroupChoice, group: int) -> GroupState:
        """Runs a group under the decision that was taken before it.

        Args:
          state: state of inference before the group.
          choice: structure and keep rates of the group.
          group: index of the group, from 1.
        """
        num_keep = self.spec.tokens_after(state.tokens.count, choice.keep)
        steps = {self.spec.space.first_layers[group]: decision_step(self.spec, num_keep)}
        mlp_before = LayerSizes(state.width, state.width, state.mlp_dim)
        return self._forward_group(state.tokens, choice, group, steps, mlp_before)

    def _forward_group(
        self,
        tokens: TokenSet,
        choice: GroupChoice,
        group: int,
        steps: Mapping[int, TokenStep] | None = None,
        mlp_before: LayerSizes | None = None,
    ) -> GroupState:
        first = self.spec.space.first_layers[group]
        layers = range(first, first + len(choice.widths))
        sizes = {
            layer: LayerSizes(width, width, mlp_dim)
            for layer, width, mlp_dim in zip(layers, choice.widths, choice.mlp_dims)
        }
        if group and self.spec.enter_at_widest:
            sizes[first] = sizes[first]._replace(width_in=self.spec.space.max_width)
        arriving = tokens
        tokens, signals, _ = forward_layers(self.blocks, tokens, layers, sizes, steps, mlp_before=mlp_before)
        width = choice.widths[-1]
        # A group of one layer reduces its tokens after the attention that the signals are of.
        patch_attention = values_of_patches(arriving if len(layers) == 1 else tokens, signals.cls_attention)
        early_logits = self.early_logits(tokens, width)
        return GroupState(tokens, signals, width, choice.mlp_dims[-1], early_logits, patch_attention)

    def forward_head(self, state: GroupState) -> jax.Array:
        """Finishes the network: logits as of `head_logits`."""
        size = LayerSizes(state.width, state.width, state.mlp_dim)
        tokens = self.apply_last_mlp(state.tokens, size, only_read=self.spec.reads_class_tokens_only)
        return self.head_logits(tokens, state.width)

    def initial_tokens(
        self,
        images: jax.Array,
        width: Size,
        added: jax.Array | None = None,
        scores: jax.Array | None = None,
    ) -> TokenSet:
        """Embeds images as a token set of `width` channels.

        Args:
          images: float [B, S, S, channels].
          width: channels of the embedding.
          added: [B, spec.all_tokens, width], added to prefix tokens and patches; None adds nothing.
          scores: float32 [B, spec.cells], the highest ones choose the cells that are split; None without
            `spec.refined_cells`.
        """
        check_images(images, self.spec.image_shape)
        prefix = [jnp.atleast_2d(part) for part in self.prefix]
        embedding = heads.EmbeddingWeights(self.patch_embed(), prefix, self.pos_embed, self.norm_pre)
        return heads.embed(self.spec, embedding, images, width, added, scores)

    def classify(self, features: jax.Array, width: Size, head: AffineWeights | None = None) -> jax.Array:
        """Applies the final norm and a head to any tokens.

        Args:
          features: [B, N, C].
          width: channels that count.
          head: weights of the head; by default the network's.

        Returns:
          float32 [B, N, spec.outputs].
        """
        return heads.classify(self.spec, self.norm, self.head if head is None else head, features, width)

    def head_logits(self, tokens: TokenSet, width: Size) -> jax.Array:
        """Computes the logits of a finished set of tokens.

        Args:
          tokens: tokens after the last MLP.
          width: channels that count.

        Returns:
          float32 [B, num_classes], of what `heads.pool` returns; of a distilled network the mean of both classifiers;
          without classes [B, C], what one would read. For pixels [B, S, S, num_classes]: a dropped patch takes the
          logits of the nearest one that remains (`unmerge`).
        """
        if self.spec.pixels:
            return self.pixel_logits(unmerge(tokens, grid=self.spec.grid), width)
        read = lambda index: heads.pool(self.spec, self.norm, tokens, width, index)
        logits = heads.apply_head(self.spec, self.head, read(0), width)[:, 0]
        if not self.spec.distilled:
            return logits
        return (logits + heads.apply_head(self.spec, self.head_dist, read(1), width)[:, 0]) / 2

    def pixel_logits(self, grid: jax.Array, width: Size) -> jax.Array:
        """Computes the logits of all pixels, float32 [B, S, S, num_classes].

        Args:
          grid: [B, P, C], features of all patches in the order of the grid.
          width: channels that count.
        """
        return heads.patches_to_pixels(self.spec, self.classify(grid, width))

    def early_logits(self, tokens: TokenSet, width: Size) -> jax.Array:
        """Computes the head's answer before the network ends, for decisions.

        Args:
          tokens: tokens between two groups.
          width: channels that count.

        Returns:
          float32 [B, num_classes]; for pixels the logarithm of the mean class distribution of the patches.
        """
        if not self.spec.pixels:
            return self.head_logits(tokens, width)
        return heads.mean_patch_logits(self.spec, self.norm, self.head, tokens, width)
