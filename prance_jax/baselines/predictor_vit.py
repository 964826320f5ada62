"""ViT with learned token predictors: SPViT (arXiv 2112.13890) and DynamicViT (arXiv 2106.02034).

A token predictor before some layers predicts which tokens to keep. Training keeps all tokens and
masks (`PredictorViT.train`), so that decisions have a gradient. Evaluation removes tokens
(`PredictorViT.__call__`): the same tokens by the same scores, without sampling. Dropped tokens are
pooled into one package token (SPViT) or lost (DynamicViT). The last layer of evaluation computes CLS
alone (`ModelSpec.num_queries`); in training it computes all tokens, whose features a loss compares.

References: Kong et al. 2022, SPViT; Rao et al. 2021, DynamicViT.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from prance_jax.baselines.predictor_config import PredictorConfig, check_network
from prance_jax.baselines.token_predictor import (
    MaskedOutput,
    TokenPredictor,
    has_package,
    keep_signals,
    pack_dropped,
    sample_decisions,
)
from prance_jax.core.sizes import Size
from prance_jax.models.block import Block, apply_norm
from prance_jax.models.token_steps import (
    LayerSizes,
    TokenStep,
    attention_of_all,
    forward_layers,
    layer_sizes,
)
from prance_jax.models.vit import ViT
from prance_jax.spec.model_spec import ModelSpec
from prance_jax.tokens.counts import removes_nothing
from prance_jax.tokens.token_set import TokenSet, initial_tokens


class PredictedKeep(NamedTuple):
    """What a token predictor decides.

    Attributes:
      keep: [B, N - 1], probability of every token but CLS to be kept.
      num_keep: tokens that are kept, an int or int32 [B], CLS and the package counted.
      drops: bool [B], which images drop a token; None where `num_keep` is the same for all.
    """

    keep: jax.Array
    num_keep: Size
    drops: jax.Array | None


class PredictorOutput(NamedTuple):
    """Output of evaluation, in which tokens are removed.

    Attributes:
      logits: float32 [B, num_classes].
      tokens: tokens after the last attention; features of CLS alone unless the last layer is full.
      tokens_after: tokens in each layer, ints or int32 [B].
    """

    logits: jax.Array
    tokens: TokenSet
    tokens_after: tuple[Size, ...]


class _Masks(NamedTuple):
    """Carry of training: kept patches [B, P], weight of the package [B], shares so far."""

    is_kept: jax.Array
    package: jax.Array
    shares: tuple[jax.Array, ...]


class PredictorViT(nn.Module):
    """A ViT (its largest structure) with token predictors.

    Parameters: 'vit' as of `ViT`, 'selector_L' for the predictor before layer L.

    Attributes:
      spec: the network.
      predictor: where predictors stand and how many tokens each keeps.
    """

    spec: ModelSpec
    predictor: PredictorConfig

    def setup(self):
        """Makes the ViT and the token predictors.

        Raises:
          UserError: see `check_network`.
        """
        check_network(self.spec)
        self.vit = ViT(self.spec)
        self.token_predictors = [
            TokenPredictor(self.spec.space.max_width, self.predictor.heads, name=f"selector_{layer}")
            for layer in self.predictor.layers
        ]

    def __call__(self, images: jax.Array) -> PredictorOutput:
        """Classifies images with fewer tokens; with one count per image, tokens are masked."""
        tokens = self.forward_first_group(images)
        tokens_after = [self.spec.tokens] * self._ends[0]
        for index, (first, end) in enumerate(zip(self._ends, self._ends[1:])):
            tokens = self._remove(tokens, self.predict_keep(tokens, index))
            tokens_after += [tokens.count] * (end - first)
            tokens = self._forward_layers(tokens, range(first, end))
        return PredictorOutput(self.forward_head(tokens), tokens, tuple(tokens_after))

    def forward_first_group(self, images: jax.Array) -> TokenSet:
        """Embeds images [B, S, S, channels] and runs the layers before the first predictor."""
        tokens = self.vit.initial_tokens(images, self._sizes[0].width_in)
        return self._forward_layers(tokens, range(self._ends[0]))

    def predict_keep(self, tokens: TokenSet, index: int) -> PredictedKeep:
        """Applies a token predictor.

        Args:
          tokens: tokens that arrive at it.
          index: which predictor, from 0.
        """
        predictor, spec = self.predictor, self.spec
        is_valid = jnp.ones(tokens.features.shape[:2], jnp.float32) if tokens.valid is None else tokens.valid
        _, keep = self.token_predictors[index](tokens.features[:, 1:], is_valid[:, 1:].astype(jnp.float32))
        if not predictor.by_threshold:
            return PredictedKeep(keep, predictor.tokens_after(spec)[predictor.layers[index]], None)
        num_keep, drops = self._count_likely(tokens, keep)
        return PredictedKeep(
            keep, predictor.method.feasible_count(tokens.count, num_keep, spec.patches), drops
        )

    def forward_group(self, tokens: TokenSet, predicted: PredictedKeep, index: int) -> TokenSet:
        """Removes tokens and runs the layers up to the next predictor or the last MLP.

        Args:
          tokens: tokens that arrived at the predictor.
          predicted: what it decided.
          index: which predictor, from 0.
        """
        return self._forward_layers(self._remove(tokens, predicted), range(*self._ends[index : index + 2]))

    def forward_head(self, tokens: TokenSet) -> jax.Array:
        """Applies the last MLP and the classifier: float32 [B, num_classes]."""
        only_read = self.spec.reads_class_tokens_only
        last = self.vit.apply_last_mlp(tokens, self._sizes[-1], only_read=only_read)
        return self.vit.classify(last.features[:, :1], self._sizes[-1].width)[:, 0]

    def train(self, images: jax.Array, key: jax.Array) -> MaskedOutput:
        """Classifies images with all tokens; dropped ones are masked.

        Decisions are sampled (Gumbel-softmax, straight-through).

        Args:
          images: float [B, S, S, channels].
          key: random key of the decisions.
        """
        spec, sizes, layers = self.spec, self._sizes, range(self.spec.space.depth)
        width = sizes[-1].width
        x = self.vit.initial_tokens(images, sizes[0].width_in).features
        x = jnp.pad(x, ((0, 0), (0, 1), (0, 0)))  # the slot of the package
        masks = _Masks(jnp.ones((len(x), spec.patches), jnp.float32), jnp.zeros(len(x), jnp.float32), ())
        steps = dict.fromkeys(layers, self._masked_step(key))
        tokens, _, masks = forward_layers(self.vit.blocks, initial_tokens(x), layers, sizes, steps, masks)
        x = self.vit.apply_last_mlp(tokens, sizes[-1]).features
        logits = self.vit.classify(x[:, :1], width)[:, 0]
        features = apply_norm(spec, self.vit.norm, x[:, 1:-1], width, width)
        return MaskedOutput(logits, jnp.stack(masks.shares, axis=1), features, masks.is_kept)

    def features(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns logits and final-norm patches [B, P, C] without predictors, as a teacher."""
        width = self._sizes[-1].width
        tokens = self.vit.initial_tokens(images, self._sizes[0].width_in)
        layers = range(self.spec.space.depth)
        steps = dict.fromkeys(layers, attention_of_all)
        tokens, _, _ = forward_layers(self.vit.blocks, tokens, layers, self._sizes, steps)
        tokens = self.vit.apply_last_mlp(tokens, self._sizes[-1])
        patches = apply_norm(self.spec, self.vit.norm, tokens.features[:, 1:], width, width)
        return self.vit.classify(tokens.features[:, :1], width)[:, 0], patches

    @property
    def _sizes(self) -> list[LayerSizes]:
        return layer_sizes(self.spec.largest)

    @property
    def _ends(self) -> tuple[int, ...]:
        """Ends of the parts of the network: the layer of each predictor, and the depth."""
        return (*self.predictor.layers, self.spec.space.depth)

    def _remove(self, tokens: TokenSet, predicted: PredictedKeep) -> TokenSet:
        """Removes what a predictor drops."""
        if removes_nothing(tokens, predicted.num_keep):
            return tokens
        drops = [predicted.drops] if self.predictor.package and predicted.drops is not None else []
        return keep_most_likely(self.predictor, tokens, predicted.keep, predicted.num_keep, *drops)

    def _forward_layers(self, tokens: TokenSet, layers: range) -> TokenSet:
        """Whole layers; of the last layer of the network only the attention."""
        tokens, _, _ = forward_layers(self.vit.blocks, tokens, layers, self._sizes)
        if layers and layers.stop < self.spec.space.depth:
            size, width_out = self._sizes[layers[-1]], self._sizes[layers.stop].width_in
            tokens = self.vit.blocks[layers[-1]].apply_mlp(tokens, size.width, size.mlp_dim, width_out)
        return tokens

    def _count_likely(self, tokens: TokenSet, keep: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Tokens, int32 [B], at threshold 1/2 of the probability; and whether any is dropped."""
        count = jnp.broadcast_to(tokens.count, keep.shape[:1])
        index = jnp.arange(1, keep.shape[1] + 1, dtype=jnp.int32)
        is_patch = index < count[:, None]
        has_packed = jnp.zeros(keep.shape[:1], bool) if tokens.package is None else tokens.package > 0
        is_patch &= ~(has_packed[:, None] & (index == count[:, None] - 1))
        num_kept = jnp.sum(is_patch & (keep > 0.5), axis=1, dtype=jnp.int32)
        drops = num_kept < is_patch.sum(axis=1)
        return 1 + num_kept + (drops | has_packed) * self.predictor.package, drops

    def _masked_step(self, key: jax.Array) -> TokenStep:
        """The token step of training: the predictor, if any, then attention to kept tokens."""

        def step(layer: int, block: Block, tokens: TokenSet, size: LayerSizes, masks: _Masks) -> Any:
            x = tokens.features
            if layer in self.predictor.layers:
                x, masks = self._mask_tokens(self.predictor.layers.index(layer), x, masks, key)
            cls = jnp.ones((len(x), 1), jnp.float32)
            policy = jnp.concatenate([cls, masks.is_kept, has_package(masks.package)], axis=1)
            tokens, signals = block.apply_attention(
                initial_tokens(x), size.width_in, size.width, policy=policy
            )
            return tokens, signals, masks

        return step

    def _mask_tokens(
        self, index: int, x: jax.Array, masks: _Masks, key: jax.Array
    ) -> tuple[jax.Array, _Masks]:
        """Samples which patches stay and moves the others into the package, the last slot."""
        sampled, keep = sample_decisions(
            self.token_predictors[index], x, masks.is_kept, masks.package, key, index
        )
        is_kept, weight = sampled * masks.is_kept, masks.package
        if self.predictor.package:
            x, weight = pack_dropped(x, weight, keep, masks.is_kept, is_kept)
        return x, _Masks(is_kept, weight, (*masks.shares, is_kept.mean(axis=1)))


def keep_most_likely(
    predictor: PredictorConfig, tokens: TokenSet, keep: jax.Array, num_keep: Size, *drops: jax.Array
) -> TokenSet:
    """Keeps the tokens that are most likely kept; the others go into the package or are lost.

    Args:
      predictor: whether there is a package.
      tokens: the tokens.
      keep: [B, N - 1], probability of every token but CLS to be kept.
      num_keep: tokens that are kept, CLS and the package counted; an int or int32 [B].
      *drops: bool [B], which images drop a token; see `tokens.methods.spvit_package`.
    """
    return predictor.method.reduce(tokens, keep_signals(keep), num_keep, *drops)
