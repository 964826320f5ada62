"""The meta-network: a Vision Transformer that holds every structure of its search space (PRANCE, section 3.1).

The network is cut where decisions are taken. A decision needs the keys of the layer before it, so a group ends after
that layer's attention; its MLP runs with the next group, at the width that the decision chose:

    begin    embedding, group 0 up to the attention of its last layer
    advance  MLP of the layer before, then group g up to the attention of its last layer    (g = 1, 2, ...)
    finish   MLP of the last layer, norm, classifier; for pixels, of the patches back on the grid

Nothing runs at a width that was not chosen, and what precedes a decision does not depend on it.
"""

from __future__ import annotations

from typing import Callable, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from prance_jax.core.sizes import Size
from prance_jax.models.block import Affine, Block, Norm, norm, sincos_init
from prance_jax.models.elastic import dense, mask_channels
from prance_jax.models.token_steps import LayerReduction, apply_method, group_method
from prance_jax.spec.model_spec import ModelSpec
from prance_jax.spec.structure import GroupChoice, Structure
from prance_jax.tokens.counts import removes_nothing
from prance_jax.tokens.method import TokenMethod
from prance_jax.tokens.token_set import AttentionSignals, TokenSet, initial_tokens
from prance_jax.tokens.unmerge import unmerge


class ViTOutput(NamedTuple):
    """logits: float32 [B, num_classes], for pixels [B, S, S, num_classes]. tokens: of the last layer, with sizes and
    owners. class_token: [B, C], what the classifier reads, after the final norm."""

    logits: jax.Array
    tokens: TokenSet
    class_token: jax.Array


class GroupState(NamedTuple):
    """The state of inference between two groups: after the attention of a group's last layer, before its MLP.

    tokens: at `width` channels. signals: of that attention. width, hidden: of the MLP still to run. glance: float32
    [B, num_classes], what the head would say of the tokens as they are now, see `ViT.glance`.
    """

    tokens: TokenSet
    signals: AttentionSignals
    width: Size
    mlp_dim: Size
    early_logits: jax.Array


class ViT(nn.Module):
    """Elastic ViT: pre-norm, class token, learned absolute positions, exact GELU.

    `structure` in `__call__` is static (compact execution) or per image (masked execution).
    """

    spec: ModelSpec

    def setup(self):
        spec, space = self.spec, self.spec.space
        width = space.super_width
        self.patch_embed = Affine(spec.patch_values, width, nn.initializers.lecun_normal())
        self.cls_token = self.param("cls_token", nn.initializers.truncated_normal(0.02), (width,))
        self.pos_embed = self.param("pos_embed", sincos_init, (spec.tokens, width))
        self.blocks = [
            Block(
                spec,
                layer,
                maps_residual=spec.residual_maps and layer + 1 in space.first_layers,
                name=f"block_{layer}",
            )
            for layer in range(space.depth)
        ]
        self.norm = Norm(width)
        self.head = Affine(width, spec.outputs)
        if spec.distilled:
            self.dist_token = self.param("dist_token", nn.initializers.truncated_normal(0.02), (width,))
            self.head_dist = Affine(width, spec.num_classes)

    def __call__(self, images: jax.Array, structure: Structure | None = None) -> jax.Array:
        """Logits [B, num_classes], float32, of images [B, S, S, channels] under a structure known beforehand; by default the
        largest. For pixels [B, S, S, num_classes]."""
        structure = self.spec.largest if structure is None else structure
        state = self.forward_first_group(images, structure.groups[0])
        for group in range(1, self.spec.space.groups):
            state = self.forward_group(state, structure.groups[group], group)
        return self.forward_head(state)

    def forward_reduced(
        self,
        images: jax.Array,
        structure: Structure,
        layer_reduction: LayerReduction,
        watch: Callable[[TokenSet, TokenSet], None] | None = None,
    ) -> ViTOutput:
        """A static structure, its keep rates not used, with a token method in its layers, as the training-free ones are
        meant. In the last layer only class tokens go through the MLP: the classifier reads nothing else; for pixels all do.
        watch: is called with the tokens before and after every reduction."""
        method, proportional = layer_reduction.method, layer_reduction.proportional
        widths, mlp_dims = structure.widths, structure.mlp_dims
        tokens = initial_tokens(self.embed(images, widths[0]), self.spec.class_tokens)
        for layer, block in enumerate(self.blocks):
            width, num_keep = widths[layer], layer_reduction.num_keep[layer]
            if removes_nothing(tokens, num_keep):
                tokens, _ = block.apply_attention(tokens, width, width)
            else:
                arriving, tokens, _ = self.apply_attention_and_reduce(
                    layer, tokens, width, width, method, (num_keep,)
                )
                if proportional is not None:
                    tokens = tokens._replace(size=tokens.members if proportional else None)
                if watch is not None:
                    watch(arriving, tokens)
            last = layer + 1 == len(widths)
            unread = last and not self.spec.pixels
            read = tokens.features[:, : self.spec.class_tokens]
            part = tokens._replace(features=read) if unread else tokens
            fed = block.apply_mlp(part, width, mlp_dims[layer], widths[layer if last else layer + 1])
            tokens = tokens if unread else fed
        class_token = norm(self.spec, self.norm, fed.features[:, :1], widths[-1], widths[-1])[:, 0]
        return ViTOutput(self.head_logits(fed, widths[-1]), tokens, class_token)

    def apply_attention_and_reduce(
        self,
        layer: int,
        tokens: TokenSet,
        width_in: Size,
        width: Size,
        method: TokenMethod,
        num_keep: tuple[Size, ...],
        **options,
    ) -> tuple[TokenSet, TokenSet, AttentionSignals]:
        """Attention of a layer and a token method, after it or one step ahead: tokens just before the method, tokens for the
        layer's MLP, and what the attention tells. left: tokens after each step of the method."""
        block = self.blocks[layer]
        if method.ahead is not None and not removes_nothing(tokens, num_keep[-1]):
            group = lambda tokens, signals: group_method(self.spec, method, tokens, signals, num_keep)
            return tokens, *block.attention_one_step_ahead(tokens, width_in, width, group)
        tokens, signals = block.apply_attention(tokens, width_in, width, method.received)
        return tokens, apply_method(self.spec, method, tokens, signals, num_keep, **options), signals

    def forward_first_group(self, images: jax.Array, choice: GroupChoice) -> GroupState:
        """Embeds images [B, S, S, channels] and runs group 0; `choice` has no keep rates."""
        tokens = initial_tokens(self.embed(images, choice.widths[0]), self.spec.class_tokens)
        tokens, signals = self.blocks[0].apply_attention(tokens, choice.widths[0], choice.widths[0])
        return self._rest_of_group(tokens, signals, choice, 0)

    def forward_group(self, state: GroupState, choice: GroupChoice, group: int) -> GroupState:
        """Runs group `group` (1, 2, ...) under the decision taken at its opening."""
        layer = self.spec.space.first_layers[group]
        width = choice.widths[0]
        width_in = self.spec.space.max_width if self.spec.enter_at_widest else width
        tokens = self.blocks[layer - 1].apply_mlp(state.tokens, state.width, state.mlp_dim, width_in)
        method, options = self.spec.method, {}
        if self.spec.weighted_merge and method.weighted:
            options["weighted"] = True
        num_keep = self.spec.tokens_after(tokens.count, choice.keep)
        _, tokens, signals = self.apply_attention_and_reduce(
            layer, tokens, width_in, width, method, num_keep, **options
        )
        return self._rest_of_group(tokens, signals, choice, group)

    def forward_head(self, state: GroupState) -> jax.Array:
        """Logits [B, num_classes], float32; for pixels [B, S, S, num_classes]."""
        tokens = self.blocks[-1].apply_mlp(state.tokens, state.width, state.mlp_dim, state.width)
        return self.head_logits(tokens, state.width)

    def embed(self, images: jax.Array, width: Size) -> jax.Array:
        """Patches, class tokens and positions: [B, S, S, channels] -> [B, tokens, width]."""
        spec = self.spec
        batch, side, size = images.shape[0], spec.image_size // spec.patch_size, spec.patch_size
        patches = images.astype(spec.dtype).reshape(batch, side, size, side, size, spec.channels)
        patches = patches.transpose(0, 1, 3, 2, 4, 5).reshape(batch, side * side, spec.patch_values)
        x = dense(patches, *self.patch_embed(), spec.patch_values, width, spec.space.max_width)
        channels = x.shape[-1]
        own = [self.cls_token, self.dist_token] if spec.distilled else [self.cls_token]
        first = [jnp.broadcast_to(token[:channels].astype(x.dtype), (batch, 1, channels)) for token in own]
        x = jnp.concatenate([*first, x], axis=1) + self.pos_embed[:, :channels].astype(x.dtype)
        return mask_channels(x, width)

    def classify(self, features: jax.Array, width: Size, head: Affine | None = None) -> jax.Array:
        """Final norm and head on any tokens: [B, N, C] -> [B, N, outputs], float32."""
        classes, head = self.spec.outputs, self.head if head is None else head
        x = norm(self.spec, self.norm, features, width, width).astype(jnp.float32)
        return dense(x, *head(), width, classes, classes)

    def head_logits(self, tokens: TokenSet, width: Size) -> jax.Array:
        """Logits [B, num_classes] of the class token; of a distilled network the mean of both tokens' classifiers; for pixels
        [B, S, S, num_classes], a dropped patch's from the nearest one that is left (`unmerge`)."""
        if self.spec.pixels:
            return self.pixel_logits(unmerge(tokens), width)
        logits = self.classify(tokens.features[:, :1], width)[:, 0]
        if not self.spec.distilled:
            return logits
        return (logits + self.classify(tokens.features[:, 1:2], width, self.head_dist)[:, 0]) / 2

    def pixel_logits(self, grid: jax.Array, width: Size) -> jax.Array:
        """Logits [B, S, S, num_classes] of patches [B, P, C] in the order of the grid: a linear map from each to its pixels
        (Strudel et al. 2021, arXiv 2105.05633, section 3.2, with pixels in place of an interpolation)."""
        spec, size = self.spec, self.spec.patch_size
        side = spec.image_size // size
        x = self.classify(grid, width).reshape(-1, side, side, size, size, spec.num_classes)
        return x.transpose(0, 1, 3, 2, 4, 5).reshape(-1, spec.image_size, spec.image_size, spec.num_classes)

    def early_logits(self, tokens: TokenSet, width: Size) -> jax.Array:
        """float32 [B, num_classes], for decisions: the verdict so far. For pixels the logarithm of the mean over the patch
        tokens that are left of what the head says of each, its pixels' logits averaged."""
        if not self.spec.pixels:
            return self.head_logits(tokens, width)
        classes = self.spec.num_classes
        x = norm(self.spec, self.norm, tokens.features, width, width).astype(jnp.float32)
        # The mean of a patch's pixels is linear: averaging the weights first costs patch_size^2 times less.
        kernel, bias = (leaf.reshape(*leaf.shape[:-1], -1, classes).mean(-2) for leaf in self.head())
        said = jax.nn.softmax(dense(x, kernel, bias, width, classes, classes))[:, 1:]
        if tokens.valid is None:
            mean = said.mean(axis=1)
        else:
            there = tokens.valid[:, 1:, None]
            mean = jnp.sum(jnp.where(there, said, 0.0), axis=1) / jnp.maximum(there.sum(axis=1), 1)
        return jnp.log(jnp.maximum(mean, 1e-9))

    def _rest_of_group(
        self, tokens: TokenSet, signals: AttentionSignals, choice: GroupChoice, group: int
    ) -> GroupState:
        """From the MLP of a group's first layer to the attention of its last one."""
        layer = self.spec.space.first_layers[group]
        for index in range(1, len(choice.widths)):
            width, target = choice.widths[index - 1], choice.widths[index]
            tokens = self.blocks[layer + index - 1].apply_mlp(
                tokens, width, choice.mlp_dims[index - 1], target
            )
            tokens, signals = self.blocks[layer + index].apply_attention(tokens, target, target)
        width = choice.widths[-1]
        # Where nobody looks at it, the compiler leaves it out.
        return GroupState(tokens, signals, width, choice.mlp_dims[-1], self.early_logits(tokens, width))
