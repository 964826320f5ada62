"""Learned token selectors: SPViT (Kong et al. 2022, arXiv 2112.13890) and DynamicViT (Rao et al. 2021, arXiv 2106.02034).

A small network before some layers says of every token whether it stays. Training keeps all tokens and masks (`train`),
so the decisions have a gradient; evaluation removes them (`__call__`), the same tokens by the same scores, and draws
nothing. What is dropped goes into one package token (SPViT) or nowhere (DynamicViT).
"""

from __future__ import annotations

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from prance_jax.baselines.predictor_config import PredictorConfig
from prance_jax.baselines.token_predictor import TokenPredictor, gumbel_keep_mask
from prance_jax.core.errors import UserError
from prance_jax.core.sizes import Size
from prance_jax.models.block import norm
from prance_jax.models.vit import ViT
from prance_jax.spec.model_spec import ModelSpec
from prance_jax.tokens.counts import removes_nothing
from prance_jax.tokens.token_set import AttentionSignals, TokenSet, initial_tokens


class PredictedKeep(NamedTuple):
    """keep: [B, N - 1], the probability of every token but CLS to be kept. left: tokens that stay, an int or int32 [B], CLS and
    the package counted. drops: bool [B], which images drop something; None where `left` tells."""

    keep: jax.Array
    num_keep: Size
    drops: jax.Array | None


class PredictorOutput(NamedTuple):
    """logits [B, K]; the last tokens; left: tokens in each layer, ints or int32 [B]."""

    logits: jax.Array
    tokens: TokenSet
    tokens_after: tuple[Size, ...]


class MaskedOutput(NamedTuple):
    """logits [B, K]; kept: [B, sites], share of the patches that stay, with gradient; features: [B, P, C], the last
    layer's patches after the final norm; there: [B, P], which of them are left."""

    logits: jax.Array
    kept: jax.Array
    features: jax.Array
    is_kept: jax.Array


class PredictorViT(nn.Module):
    """A ViT (its largest structure) with selectors. Parameters: 'vit' as of `ViT`, 'selector_I' per site."""

    spec: ModelSpec
    predictor: PredictorConfig

    def setup(self):
        if self.spec.distilled:
            raise UserError("learned selectors know one class token here; a distilled network has two")
        if self.spec.pixels:
            raise UserError(
                "learned selectors keep what the class token needs; with pixels=True use a token method"
            )
        self.vit = ViT(self.spec)
        self.selectors = [
            TokenPredictor(self.spec.space.max_width, self.predictor.heads, name=f"selector_{site}")
            for site in self.predictor.layers
        ]

    def __call__(self, images: jax.Array) -> PredictorOutput:
        """Tokens are removed; or masked, where every image has a number of its own."""
        tokens = self.forward_first_group(images)
        seen = [tokens.count] * self._ends[0]
        for index, (first, end) in enumerate(zip(self._ends, self._ends[1:])):
            tokens = self.forward_group(tokens, self.predict_keep(tokens, index), index)
            seen += [tokens.count] * (end - first)
        return PredictorOutput(self.forward_head(tokens), tokens, tuple(seen))

    def forward_first_group(self, images: jax.Array) -> TokenSet:
        """Embedding, and the layers before the first selector."""
        return self._layers(
            initial_tokens(self.vit.embed(images, self.spec.largest.widths[0])), 0, self._ends[0]
        )

    def predict_keep(self, tokens: TokenSet, index: int) -> PredictedKeep:
        """What selector `index` (0, 1, ...) says of the tokens that arrive at it."""
        predictor, spec = self.predictor, self.spec
        is_kept = jnp.ones(tokens.features.shape[:2]) if tokens.valid is None else tokens.valid
        _, keep = self.selectors[index](tokens.features[:, 1:], is_kept[:, 1:].astype(jnp.float32))
        if not predictor.by_threshold:
            return PredictedKeep(keep, predictor.tokens_after(spec)[predictor.layers[index]], None)
        num_keep, drops = self._number(tokens, keep)
        return PredictedKeep(keep, predictor.method.possible(tokens.count, num_keep, spec.patches), drops)

    def forward_group(self, tokens: TokenSet, chosen: PredictedKeep, index: int) -> TokenSet:
        """Removes what selector `index` chose, and runs the layers up to the next one; the last layer up to its MLP."""
        if not removes_nothing(tokens, chosen.num_keep):
            drops = [chosen.drops] if self.predictor.package and chosen.drops is not None else []
            tokens = keep_most_likely(self.predictor, tokens, chosen.keep, chosen.num_keep, *drops)
        return self._layers(tokens, *self._ends[index : index + 2])

    def forward_head(self, tokens: TokenSet) -> jax.Array:
        """Logits [B, K]: the last MLP, for CLS alone, and the classifier."""
        width, mlp_dims = self.spec.largest.widths[-1], self.spec.largest.mlp_dims[-1]
        read = tokens._replace(features=tokens.features[:, :1])
        fed = self.vit.blocks[-1].apply_mlp(read, width, mlp_dims, width)
        return self.vit.classify(fed.features, width)[:, 0]

    @property
    def _ends(self) -> tuple[int, ...]:
        """The layers where each part of the network ends: at every selector, and behind the last layer."""
        return (*self.predictor.layers, self.spec.space.depth)

    def _layers(self, tokens: TokenSet, first: int, end: int) -> TokenSet:
        """Layers from `first` up to `end`; of the last layer of all only the attention."""
        widths, mlp_dims = self.spec.largest.widths, self.spec.largest.mlp_dims
        for layer in range(first, end):
            block = self.vit.blocks[layer]
            tokens, _ = block.apply_attention(tokens, widths[layer], widths[layer])
            if layer + 1 < len(widths):
                tokens = block.apply_mlp(tokens, widths[layer], mlp_dims[layer], widths[layer + 1])
        return tokens

    def _number(self, tokens: TokenSet, keep: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Tokens left, int32 [B], when those stay that are more likely to stay than not; and whether any goes."""
        count = jnp.broadcast_to(tokens.count, keep.shape[:1])
        rank = jnp.arange(1, keep.shape[1] + 1)
        patch = rank < count[:, None]
        packed = jnp.zeros(keep.shape[:1], bool) if tokens.package is None else tokens.package > 0
        patch &= ~(packed[:, None] & (rank == count[:, None] - 1))
        kept = jnp.sum(patch & (keep > 0.5), axis=1, dtype=jnp.int32)
        drops = kept < patch.sum(axis=1)
        return 1 + kept + (drops | packed) * self.predictor.package, drops

    def train(self, images: jax.Array, key: jax.Array) -> MaskedOutput:
        """All tokens, those dropped masked; decisions drawn (Gumbel-softmax, straight-through)."""
        predictor, spec = self.predictor, self.spec
        widths, mlp_dims = spec.largest.widths, spec.largest.mlp_dims
        x = self.vit.embed(images, widths[0])
        batch, patches = x.shape[0], spec.patches
        is_kept, gathered, shares = jnp.ones((batch, patches)), jnp.zeros(batch), []
        x = jnp.pad(x, ((0, 0), (0, 1), (0, 0)))  # the place of the package
        for layer, block in enumerate(self.vit.blocks):
            if layer in predictor.layers:
                index = predictor.layers.index(layer)
                seen = jnp.concatenate([is_kept, self._packed(gathered)], axis=1)
                chances, keep = self.selectors[index](x[:, 1:], seen)
                kept = gumbel_keep_mask(chances[:, :-1], jax.random.fold_in(key, index)) * is_kept
                if predictor.package:
                    weights = keep[:, :-1] * (is_kept - kept)
                    total = gathered + weights.sum(axis=1)
                    package = gathered[:, None] * x[:, -1] + jnp.einsum("bn,bnc->bc", weights, x[:, 1:-1])
                    package = package / jnp.where(total > 0, total, 1.0)[:, None]
                    x, gathered = jnp.concatenate([x[:, :-1], package[:, None].astype(x.dtype)], 1), total
                is_kept = kept
                shares.append(is_kept.mean(axis=1))
            policy = jnp.concatenate([jnp.ones((batch, 1)), is_kept, self._packed(gathered)], axis=1)
            tokens, _ = block.apply_attention(initial_tokens(x), widths[layer], widths[layer], policy=policy)
            following = widths[min(layer + 1, len(widths) - 1)]
            x = block.apply_mlp(tokens, widths[layer], mlp_dims[layer], following).features
        logits = self.vit.classify(x[:, :1], widths[-1])[:, 0]
        features = norm(spec, self.vit.norm, x[:, 1:-1], widths[-1], widths[-1])
        return MaskedOutput(logits, jnp.stack(shares, axis=1), features, is_kept)

    def features(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Logits and final-norm patches [B, P, C] of the network without selection: what a teacher gives."""
        widths, mlp_dims = self.spec.largest.widths, self.spec.largest.mlp_dims
        tokens = initial_tokens(self.vit.embed(images, widths[0]))
        for layer, block in enumerate(self.vit.blocks):
            tokens, _ = block.apply_attention(tokens, widths[layer], widths[layer])
            following = widths[min(layer + 1, len(widths) - 1)]
            tokens = block.apply_mlp(tokens, widths[layer], mlp_dims[layer], following)
        patches = norm(self.spec, self.vit.norm, tokens.features[:, 1:], widths[-1], widths[-1])
        return self.vit.classify(tokens.features[:, :1], widths[-1])[:, 0], patches

    def _packed(self, gathered: jax.Array) -> jax.Array:
        """Whether there is a package, float32 [B, 1]."""
        return jax.lax.stop_gradient((gathered > 0).astype(jnp.float32))[:, None]


def keep_most_likely(
    predictor: PredictorConfig, tokens: TokenSet, keep: jax.Array, num_keep: Size, *drops: jax.Array
) -> TokenSet:
    """`left` tokens: those most likely to be kept, and what the others leave. keep: [B, N - 1], without CLS. drops: see
    `tokens.package`."""
    # The reductions read scores where they otherwise read the attention from CLS; it ranks first anyway.
    scores = AttentionSignals(*[jnp.pad(keep, ((0, 0), (1, 0)), constant_values=1.0)] * 3)
    return predictor.method.reduce(tokens, scores, num_keep, *drops)
