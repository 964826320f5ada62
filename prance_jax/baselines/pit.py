"""Pooling-based ViT (PiT) with a token predictor in each stage (SPViT).

Between stages a strided depthwise convolution halves the grid and widens the channels; class token
and package have a separate linear map. The convolution needs the whole grid. So a token that a
predictor drops is left out of the rest of its stage only: before the pooling it is back with the
features that it had when it was dropped, and every stage begins with all tokens.

References: PiT, Heo et al. 2021, arXiv 2103.16302; SPViT, Kong et al. 2022, arXiv 2112.13890.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from prance_jax.baselines.depthwise import DepthwisePool
from prance_jax.baselines.pit_spec import PiTSpec
from prance_jax.baselines.token_predictor import (
    MaskedOutput,
    TokenPredictor,
    has_package,
    keep_signals,
    pack_dropped,
    sample_decisions,
)
from prance_jax.core.checks import check_images
from prance_jax.models.block import Block, NormWeights, apply_norm
from prance_jax.tokens.methods.registry import METHODS
from prance_jax.tokens.token_set import TokenSet, initial_tokens
from prance_jax.tokens.unmerge import last_features, unmerge


class PiT(nn.Module):
    """A PiT with or without token predictors.

    Evaluation (`__call__`) removes dropped tokens for the rest of the stage. Training (`train`)
    samples decisions and masks dropped tokens.

    Parameters: 'stageS_block_L' for block L of stage S, 'pool_S' and 'cls_S' after it, 'selector_S'
    for its predictor.

    Attributes:
      spec: the network.
    """

    spec: PiTSpec

    def setup(self):
        """Makes the stages, the poolings between them and the token predictors."""
        spec = self.spec
        size, stride, dims = (spec.patch_size,) * 2, (spec.stride,) * 2, spec.dims
        self.patch_embed = nn.Conv(dims[0], size, stride, padding="VALID")
        self.cls_token = self.param(
            "cls_token", nn.initializers.truncated_normal(0.02), (1, 1, dims[0]), jnp.float32
        )
        self.pos_embed = self.param(
            "pos_embed",
            nn.initializers.truncated_normal(0.02),
            (1, spec.grids[0], spec.grids[0], dims[0]),
            jnp.float32,
        )
        self.stages = [
            [
                Block(spec.stage(stage), block, maps_residual=False, name=f"stage{stage}_block_{block}")
                for block in range(depth)
            ]
            for stage, depth in enumerate(spec.depths)
        ]
        self.pools = [DepthwisePool(dim, name=f"pool_{stage}") for stage, dim in enumerate(dims[1:])]
        self.maps = [nn.Dense(dim, name=f"cls_{stage}") for stage, dim in enumerate(dims[1:])]
        self.token_predictors = [
            TokenPredictor(dims[stage], spec.heads[stage], name=f"selector_{stage}")
            for stage in range(len(spec.predictor_blocks))
        ]
        self.norm = NormWeights(dims[-1])
        self.head = nn.Dense(spec.num_classes)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Classifies images [B, S, S, channels] with fewer tokens: logits [B, num_classes]."""
        return self._classify(self._forward_stages(images, self.spec.predictor_blocks)[0])

    def features(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns logits and final-norm patches [B, P, C] without predictors, as a teacher."""
        cls, grid = self._forward_stages(images, ())
        return self._classify(cls), self._final_norm(grid.reshape(grid.shape[0], -1, grid.shape[-1]))

    def train(self, images: jax.Array, key: jax.Array) -> MaskedOutput:
        """Classifies images with all tokens; dropped ones are masked and keep their features.

        Decisions are sampled (Gumbel-softmax, straight-through).

        Args:
          images: float [B, S, S, channels].
          key: random key of the decisions.

        Returns:
          Logits, shares that the predictors keep ([B, 0] without predictors), and patches of the
          last stage.
        """
        spec, (cls, grid) = self.spec, self._embed(images)
        batch = images.shape[0]
        package_weight, shares = jnp.zeros(batch, jnp.float32), []
        package = jnp.zeros_like(cls)
        for stage, blocks in enumerate(self.stages):
            stage_spec, dim = spec.stage(stage), spec.dims[stage]
            is_kept = jnp.ones((batch, stage_spec.patches), jnp.float32)
            x = jnp.concatenate([cls, grid.reshape(batch, stage_spec.patches, dim), package], axis=1)
            for index, block in enumerate(blocks):
                if spec.predictor_blocks and index == spec.predictor_blocks[stage]:
                    was_kept, predictor = is_kept, self.token_predictors[stage]
                    is_kept, keep = sample_decisions(predictor, x, was_kept, package_weight, key, stage)
                    x, package_weight = pack_dropped(x, package_weight, keep, was_kept, is_kept)
                    shares.append(is_kept.mean(axis=1))
                policy = jnp.concatenate(
                    [jnp.ones((batch, 1), jnp.float32), is_kept, has_package(package_weight)], axis=1
                )
                tokens, _ = block.apply_attention(initial_tokens(x), dim, dim, policy=policy)
                after = block.apply_mlp(tokens, dim, stage_spec.space.max_mlp_dim, dim).features
                x = jnp.where(jax.lax.stop_gradient(policy)[:, :, None] > 0, after, x)
            cls, package = x[:, :1], x[:, -1:]
            grid = x[:, 1:-1].reshape(batch, *(spec.grids[stage],) * 2, dim)
            cls, package, grid = self._pool(stage, cls, package, grid)
        kept = jnp.stack(shares, axis=1) if shares else jnp.ones((batch, 0), jnp.float32)
        features = self._final_norm(grid.reshape(batch, -1, grid.shape[-1]))
        return MaskedOutput(self._classify(cls), kept, features, is_kept)

    def _forward_stages(
        self, images: jax.Array, predictor_blocks: tuple[int, ...]
    ) -> tuple[jax.Array, jax.Array]:
        """CLS [B, 1, C] and grid [B, G, G, C] after the last stage; dropped tokens are removed."""
        spec, (cls, grid) = self.spec, self._embed(images)
        package, package_weight = None, None
        for stage, blocks in enumerate(self.stages):
            stage_spec, dim = spec.stage(stage), spec.dims[stage]
            tokens = _join_tokens(cls, grid, package, package_weight)
            dropped_features = None
            for index, block in enumerate(blocks):
                if predictor_blocks and index == predictor_blocks[stage]:
                    before, tokens = tokens, self._remove_tokens(stage, tokens, spec.patches_after(stage))
                    patches = before.features[:, 1 : 1 + stage_spec.patches]
                    dropped_features = last_features(patches, before, tokens)
                tokens, _ = block.apply_attention(tokens, dim, dim)
                tokens = block.apply_mlp(tokens, dim, stage_spec.space.max_mlp_dim, dim)
            cls, package_weight = tokens.features[:, :1], tokens.package
            package = None if package_weight is None else tokens.features[:, -1:]
            grid = unmerge(tokens, last=dropped_features)
            grid = grid.reshape(grid.shape[0], *(spec.grids[stage],) * 2, dim)
            cls, package, grid = self._pool(stage, cls, package, grid)
        return cls, grid

    def _embed(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        """CLS [B, 1, C], which has no position, and the grid [B, G, G, C] with positions."""
        spec = self.spec
        check_images(images, (spec.image_size, spec.image_size, spec.channels))
        grid = self.patch_embed(images.astype(jnp.float32)) + self.pos_embed
        return jnp.broadcast_to(self.cls_token, (images.shape[0], 1, grid.shape[-1])), grid

    def _remove_tokens(self, stage: int, tokens: TokenSet, patches_after: int) -> TokenSet:
        """Keeps the most likely patches of a stage; the others go into the package."""
        is_kept = jnp.ones((tokens.features.shape[0], tokens.features.shape[1] - 1), jnp.float32)
        _, keep = self.token_predictors[stage](tokens.features[:, 1:], is_kept)
        patches = tokens.features.shape[1] - 1 - (tokens.package is not None)
        if patches_after >= patches:
            return tokens
        reduced = METHODS["package"].reduce(tokens, keep_signals(keep), 1 + patches_after + 1)
        # A patch in the package, the last token, is no longer on the grid.
        token_of_patch = jnp.where(reduced.token_of_patch > patches_after, -1, reduced.token_of_patch)
        return reduced._replace(token_of_patch=token_of_patch)

    def _pool(
        self, stage: int, cls: jax.Array, package: jax.Array | None, grid: jax.Array
    ) -> tuple[jax.Array, jax.Array | None, jax.Array]:
        """CLS, package and grid at the size of the next stage; unchanged after the last stage."""
        if stage + 1 == len(self.spec.dims):
            return cls, package, grid
        package = None if package is None else self.maps[stage](package)
        return self.maps[stage](cls), package, self.pools[stage](grid)

    def _classify(self, cls: jax.Array) -> jax.Array:
        return self.head(self._final_norm(cls)[:, 0])

    def _final_norm(self, x: jax.Array) -> jax.Array:
        width = self.spec.dims[-1]
        return apply_norm(self.spec.stage(len(self.spec.dims) - 1), self.norm, x, width, width)


def _join_tokens(
    cls: jax.Array, grid: jax.Array, package: jax.Array | None, package_weight: jax.Array | None
) -> TokenSet:
    """CLS, the patches of a grid and the package, if there is one, as tokens."""
    patches = grid.reshape(grid.shape[0], -1, grid.shape[-1])
    tokens = initial_tokens(jnp.concatenate([cls, patches], axis=1))
    if package is None:
        return tokens
    features = jnp.concatenate([tokens.features, package], axis=1)
    return tokens._replace(features=features, package=package_weight)
