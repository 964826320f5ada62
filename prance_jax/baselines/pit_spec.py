"""Sizes and costs of a pooling-based ViT (PiT, Heo et al. 2021, arXiv 2103.16302)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from prance_jax.baselines.token_predictor import predictor_macs
from prance_jax.core.errors import UserError
from prance_jax.core.fields import NumChannels, Ratio, Repeats, Side
from prance_jax.spec.model_spec import ModelSpec
from prance_jax.spec.search_space import SearchSpace
from prance_jax.tokens.methods.registry import METHODS


@dataclass(frozen=True, kw_only=True)
class PiTSizes:
    """Sizes of a PiT, by default those of PiT-S.

    Attributes:
      patch_size: side of a patch, in pixels.
      stride: distance of neighbouring patches, in pixels.
      dims: channels of each stage.
      heads: attention heads of each stage.
      depths: blocks of each stage.
      mlp_ratio: hidden units of an MLP per channel.
    """

    patch_size: Side = 16
    stride: Side = 8
    dims: tuple[NumChannels, ...] = (144, 288, 576)
    heads: tuple[NumChannels, ...] = (3, 6, 12)
    depths: tuple[Repeats, ...] = (2, 6, 4)
    mlp_ratio: Ratio = 4.0


@dataclass(frozen=True)
class PiTSpec(PiTSizes):
    """A PiT with or without token predictors.

    Attributes:
      image_size: side of the square image, in pixels.
      num_classes: classes of an image.
      channels: of the image.
      norm_epsilon: of LayerNorm.
      predictor_blocks: for each stage the block, from 0, before which its token predictor stands;
        empty: a plain PiT.
      keep_rates: share of the stage's patches that each predictor keeps, in (0, 1].

    Raises:
      UserError: fields of stages differ in length, or a value is out of its range.
    """

    image_size: int
    num_classes: int
    channels: int = 3
    norm_epsilon: float = 1e-6
    predictor_blocks: tuple[int, ...] = ()
    keep_rates: tuple[float, ...] = ()

    def __post_init__(self):
        blocks = self.predictor_blocks
        if not len(self.dims) == len(self.heads) == len(self.depths):
            raise UserError(
                f"PiT: dims={self.dims}, heads={self.heads} and depths={self.depths} need one entry for "
                "each stage"
            )
        if any(dim_out % dim for dim, dim_out in zip(self.dims, self.dims[1:])):
            raise UserError(
                f"PiT: each of dims={self.dims} must be a multiple of the one before (depthwise pooling)"
            )
        if blocks and not len(blocks) == len(self.keep_rates) == len(self.depths):
            raise UserError(
                f"PiT: predictor_blocks={blocks} and keep_rates={self.keep_rates} need one entry for "
                "each stage"
            )
        if any(not 0 <= block < depth for block, depth in zip(blocks, self.depths)):
            raise UserError(
                f"PiT: predictor_blocks={blocks} must be block indices of their stages, from 0 and below "
                f"depths={self.depths}"
            )
        if any(not 0 < share <= 1 for share in self.keep_rates):
            raise UserError(f"PiT: keep_rates={self.keep_rates} must be shares above 0 and up to 1")

    @property
    def plain(self) -> PiTSpec:
        """The same network without token predictors."""
        return dataclasses.replace(self, predictor_blocks=(), keep_rates=())

    @property
    def grids(self) -> tuple[int, ...]:
        """Side of the grid of patches in each stage."""
        sides = [(self.image_size - self.patch_size) // self.stride + 1]
        for _ in self.depths[1:]:
            sides.append((sides[-1] - 1) // 2 + 1)
        return tuple(sides)

    def stage(self, index: int) -> ModelSpec:
        """Returns the plain ViT whose blocks a stage has."""
        dim, heads, depth = self.dims[index], self.heads[index], self.depths[index]
        space = SearchSpace(
            f"pit stage {index}",
            dim,
            self.mlp_ratio,
            heads,
            (dim,),
            (self.mlp_ratio,),
            (depth,),
            dim // heads,
        )
        side = self.grids[index]
        return ModelSpec(space, side, 1, self.num_classes, 1, norm_epsilon=self.norm_epsilon)

    def patches_after(self, index: int) -> int:
        """Returns the patches that remain in a stage after its predictor.

        A single patch in a new package would save nothing, so it stays a token.
        """
        patches = self.grids[index] ** 2
        if not self.predictor_blocks:
            return patches
        num_keep = max(1, round(self.keep_rates[index] * patches))
        has_package = any(self.patches_after(stage) < self.grids[stage] ** 2 for stage in range(index))
        return patches if num_keep == patches - 1 and not has_package else num_keep


def pit_macs(spec: PiTSpec) -> int:
    """Counts the multiply-accumulates of one image, token predictors and package included."""
    first = spec.grids[0] ** 2 * spec.patch_size**2 * spec.channels * spec.dims[0]
    total, num_packages = first + spec.dims[-1] * spec.num_classes, 0
    for stage, (side, dim, depth) in enumerate(zip(spec.grids, spec.dims, spec.depths)):
        count, mlp_dim = 1 + side**2 + num_packages, int(dim * spec.mlp_ratio)
        for block in range(depth):
            if spec.predictor_blocks and block == spec.predictor_blocks[stage]:
                total += predictor_macs(count - 1, dim, spec.heads[stage])
                if spec.patches_after(stage) < side**2:
                    tokens_after = 1 + spec.patches_after(stage) + 1
                    total += METHODS["package"].macs(count, (tokens_after,), dim, 0)
                    count, num_packages = tokens_after, 1
            total += 4 * count * dim**2 + 2 * count**2 * dim + 2 * count * dim * mlp_dim
        if stage + 1 < len(spec.dims):
            dim_out = spec.dims[stage + 1]
            total += spec.grids[stage + 1] ** 2 * 9 * dim_out + (1 + num_packages) * dim * dim_out
    return total


def pit_at_share(
    spec: PiTSpec,
    share: float,
    predictor_blocks: tuple[int, ...] | None = None,
    powers: tuple[float, ...] | None = None,
) -> PiTSpec:
    """Adds the predictors whose MACs come nearest to a share of the plain network's.

    They keep rho ** powers[stage] of each stage's patches, with rho in steps of 0.01.

    Args:
      spec: the network; its predictors are replaced.
      share: of the plain network's MACs.
      predictor_blocks: see `PiTSpec`; by default the middle of each stage, as published for PiT-S.
      powers: one for each stage; by default 1, 2, 3, ..., so that later stages keep less.

    Returns:
      The network with predictors. Its `keep_rates` are rounded to whole patches, so that training
      aims at what evaluation keeps.

    Raises:
      UserError: `powers` does not have one entry for each stage.
    """
    if predictor_blocks is None:
        predictor_blocks = tuple(depth // 2 for depth in spec.depths)
    powers = tuple(range(1, len(spec.depths) + 1)) if powers is None else powers
    if len(powers) != len(spec.depths):
        raise UserError(f"PiT: powers={powers} need one entry for each of {len(spec.depths)} stages")
    target = share * pit_macs(spec.plain)

    def at_rate(rho: float) -> PiTSpec:
        exact = dataclasses.replace(
            spec, predictor_blocks=predictor_blocks, keep_rates=tuple(rho**power for power in powers)
        )
        rounded = tuple(exact.patches_after(stage) / side**2 for stage, side in enumerate(spec.grids))
        return dataclasses.replace(exact, keep_rates=rounded)

    candidates = (at_rate(percent / 100) for percent in range(1, 101))
    return min(candidates, key=lambda candidate: abs(pit_macs(candidate) - target))
