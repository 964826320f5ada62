"""Pooling-based ViT (PiT, Heo et al. 2021, arXiv 2103.16302), with a token selector in each stage (SPViT, arXiv 2112.13890).

Between stages a strided depthwise convolution halves the grid and widens the channels; class token and package take a linear
map of their own. The convolution needs the whole grid, so what a selector drops leaves the computation of its stage only: before
the pooling dropped patches are back as they were when they were dropped, and every stage begins with all of them.
"""

from __future__ import annotations

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from prance_jax.baselines.depthwise import DepthwisePool
from prance_jax.baselines.pit_spec import PiTSpec
from prance_jax.baselines.token_predictor import TokenPredictor, gumbel_keep_mask
from prance_jax.models.block import Block, Norm, norm
from prance_jax.tokens.methods.registry import METHODS
from prance_jax.tokens.token_set import AttentionSignals, TokenSet, initial_tokens
from prance_jax.tokens.unmerge import last_features, unmerge


class PiTTrained(NamedTuple):
    """logits [B, K]; kept: [B, stages], share of the stage's patches that stay, with gradient; features: [B, P, C], the last
    stage's patches after the final norm; there: [B, P], which of them are left."""

    logits: jax.Array
    kept: jax.Array
    features: jax.Array
    is_kept: jax.Array


class PiT(nn.Module):
    """`__call__` is evaluation: the selectors' best tokens stay, the others are really gone for the rest of the stage.
    `train` masks and draws. Images are [B, S, S, channels]."""

    spec: PiTSpec

    def setup(self):
        spec = self.spec
        size, stride, dims = (spec.patch_size,) * 2, (spec.stride,) * 2, spec.dims
        self.patch_embed = nn.Conv(dims[0], size, stride, padding="VALID")
        self.cls_token = self.param("cls_token", nn.initializers.truncated_normal(0.02), (1, 1, dims[0]))
        self.pos_embed = self.param(
            "pos_embed", nn.initializers.truncated_normal(0.02), (1, spec.grids[0], spec.grids[0], dims[0])
        )
        self.stages = [
            [
                Block(spec.stage(stage), block, maps_residual=False, name=f"stage{stage}_block_{block}")
                for block in range(depth)
            ]
            for stage, depth in enumerate(spec.depths)
        ]
        following = list(zip(dims, dims[1:]))
        self.pools = [DepthwisePool(wide, name=f"pool_{stage}") for stage, (_, wide) in enumerate(following)]
        self.maps = [nn.Dense(wide, name=f"cls_{stage}") for stage, (_, wide) in enumerate(following)]
        self.selectors = [
            TokenPredictor(dims[stage], spec.heads[stage], name=f"selector_{stage}")
            for stage in range(len(spec.predictor_blocks))
        ]
        self.norm = Norm(dims[-1])
        self.head = nn.Dense(spec.num_classes)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Logits [B, num_classes], float32."""
        return self._classified(self._walk(images, self.spec.predictor_blocks)[0])

    def features(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Logits and final-norm patches [B, P, C] of the last stage, without selection: what a teacher gives."""
        cls, grid = self._walk(images, ())
        return self._classified(cls), self._normed(grid.reshape(grid.shape[0], -1, grid.shape[-1]))

    def _walk(self, images: jax.Array, predictor_blocks: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
        """CLS [B, 1, C] and the grid [B, G, G, C] after the last stage."""
        spec, (cls, grid) = self.spec, self._embedded(images)
        package, gathered = None, None
        for stage, blocks in enumerate(self.stages):
            own, dim = spec.stage(stage), spec.dims[stage]
            tokens = self._tokens(cls, grid, package, gathered)
            last = None
            for index, block in enumerate(blocks):
                if predictor_blocks and index == predictor_blocks[stage]:
                    before, tokens = tokens, self._select(stage, tokens, spec.patches_after(stage))
                    last = last_features(before.features[:, 1 : 1 + own.patches], before, tokens)
                tokens, _ = block.apply_attention(tokens, dim, dim)
                tokens = block.apply_mlp(tokens, dim, own.space.max_mlp_dim, dim)
            cls, gathered = tokens.features[:, :1], tokens.package
            package = None if gathered is None else tokens.features[:, -1:]
            grid = unmerge(tokens, last=last).reshape(grid.shape[0], *(spec.grids[stage],) * 2, dim)
            cls, package, grid = self._pooled(stage, cls, package, grid)
        return cls, grid

    def train(self, images: jax.Array, key: jax.Array) -> PiTTrained:
        """All tokens in every block; those dropped are masked and stay as they were when they were dropped."""
        spec, (cls, grid) = self.spec, self._embedded(images)
        batch = images.shape[0]
        gathered, shares = jnp.zeros(batch), []
        package = jnp.zeros_like(cls)
        for stage, blocks in enumerate(self.stages):
            own, dim = spec.stage(stage), spec.dims[stage]
            is_kept = jnp.ones((batch, own.patches))
            x = jnp.concatenate([cls, grid.reshape(batch, own.patches, dim), package], axis=1)
            for index, block in enumerate(blocks):
                if spec.predictor_blocks and index == spec.predictor_blocks[stage]:
                    seen = jnp.concatenate([is_kept, _some(gathered)], axis=1)
                    chances, keep = self.selectors[stage](x[:, 1:], seen)
                    kept = gumbel_keep_mask(chances[:, :-1], jax.random.fold_in(key, stage))
                    weights = keep[:, :-1] * (is_kept - kept)
                    total = gathered + weights.sum(axis=1)
                    mixed = gathered[:, None] * x[:, -1] + jnp.einsum("bn,bnc->bc", weights, x[:, 1:-1])
                    mixed = mixed / jnp.where(total > 0, total, 1.0)[:, None]
                    x, gathered, is_kept = jnp.concatenate([x[:, :-1], mixed[:, None]], axis=1), total, kept
                    shares.append(is_kept.mean(axis=1))
                policy = jnp.concatenate([jnp.ones((batch, 1)), is_kept, _some(gathered)], axis=1)
                tokens, _ = block.apply_attention(initial_tokens(x), dim, dim, policy=policy)
                moved = block.apply_mlp(tokens, dim, own.space.max_mlp_dim, dim).features
                x = jnp.where(jax.lax.stop_gradient(policy)[:, :, None] > 0, moved, x)
            cls, package = x[:, :1], x[:, -1:]
            grid = x[:, 1:-1].reshape(batch, *(spec.grids[stage],) * 2, dim)
            cls, package, grid = self._pooled(stage, cls, package, grid)
        kept = jnp.stack(shares, axis=1) if shares else jnp.ones((batch, 0))
        features = self._normed(grid.reshape(batch, -1, grid.shape[-1]))
        return PiTTrained(self._classified(cls), kept, features, is_kept)

    def _embedded(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        """CLS [B, 1, C] and the grid [B, G, G, C] with positions; CLS has none."""
        grid = self.patch_embed(images) + self.pos_embed
        return jnp.broadcast_to(self.cls_token, (images.shape[0], 1, grid.shape[-1])), grid

    def _tokens(self, cls, grid, package, gathered) -> TokenSet:
        patches = grid.reshape(grid.shape[0], -1, grid.shape[-1])
        tokens = initial_tokens(jnp.concatenate([cls, patches], axis=1))
        if package is None:
            return tokens
        return tokens._replace(features=jnp.concatenate([tokens.features, package], axis=1), package=gathered)

    def _select(self, stage: int, tokens: TokenSet, patches_after: int) -> TokenSet:
        is_kept = jnp.ones((tokens.features.shape[0], tokens.features.shape[1] - 1))
        _, keep = self.selectors[stage](tokens.features[:, 1:], is_kept)
        patches = tokens.features.shape[1] - 1 - (tokens.package is not None)
        if patches_after >= patches:
            return tokens
        scores = AttentionSignals(*[jnp.pad(keep, ((0, 0), (1, 0)), constant_values=1.0)] * 3)
        found = METHODS["package"].reduce(tokens, scores, 1 + patches_after + 1)
        # What is in the package, which stands behind the patches that are left, has left the grid.
        return found._replace(
            token_of_patch=jnp.where(found.token_of_patch > patches_after, -1, found.token_of_patch)
        )

    def _pooled(self, stage: int, cls, package, grid):
        if stage + 1 == len(self.spec.dims):
            return cls, package, grid
        package = None if package is None else self.maps[stage](package)
        return self.maps[stage](cls), package, self.pools[stage](grid)

    def _classified(self, cls: jax.Array) -> jax.Array:
        return self.head(self._normed(cls)[:, 0])

    def _normed(self, x: jax.Array) -> jax.Array:
        width = self.spec.dims[-1]
        return norm(self.spec.stage(len(self.spec.dims) - 1), self.norm, x, width, width)


def _some(gathered: jax.Array) -> jax.Array:
    return jax.lax.stop_gradient((gathered > 0).astype(jnp.float32))[:, None]
