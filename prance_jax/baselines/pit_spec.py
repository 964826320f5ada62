"""Sizes and costs of a pooling-based ViT (PiT, Heo et al. 2021, arXiv 2103.16302)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from prance_jax.baselines.token_predictor import predictor_macs
from prance_jax.core.errors import UserError
from prance_jax.spec.model_spec import ModelSpec
from prance_jax.spec.search_space import SearchSpace
from prance_jax.tokens.methods.registry import METHODS


@dataclass(frozen=True, kw_only=True)
class PiTSizes:
    """Sizes of a PiT, those of `pit_s` by default. patch_size, stride: of the first convolution, pixels. heads, depths: of each
    stage; dims: its channels."""

    patch_size: int = 16
    stride: int = 8
    dims: tuple[int, ...] = (144, 288, 576)
    heads: tuple[int, ...] = (3, 6, 12)
    depths: tuple[int, ...] = (2, 6, 4)
    mlp_ratio: float = 4.0


@dataclass(frozen=True)
class PiTSpec(PiTSizes):
    """A PiT of given sizes for images [image_size, image_size, channels].

    sites: for each stage the block, from 0, before which its selector stands; empty: a plain PiT. kept: share of the stage's
    patches that stay, per stage.
    """

    image_size: int
    num_classes: int
    channels: int = 3
    norm_epsilon: float = 1e-6
    predictor_blocks: tuple[int, ...] = ()
    keep_rates: tuple[float, ...] = ()

    def __post_init__(self):
        if not len(self.dims) == len(self.heads) == len(self.depths):
            raise UserError(
                f"PiT: dims={self.dims}, heads={self.heads}, depths={self.depths} must be as many"
            )
        if any(wide % dim for dim, wide in zip(self.dims, self.dims[1:])):
            raise UserError(
                f"PiT: each of dims={self.dims} must be a multiple of the one before (depthwise pooling)"
            )
        if self.predictor_blocks and not len(self.predictor_blocks) == len(self.keep_rates) == len(
            self.depths
        ):
            raise UserError(
                f"PiT: predictor_blocks={self.predictor_blocks} and keep_rates={self.keep_rates} need one entry for each stage"
            )
        if any(not 0 <= site < depth for site, depth in zip(self.predictor_blocks, self.depths)):
            raise UserError(
                f"PiT: predictor_blocks={self.predictor_blocks} must be blocks of stages with {self.depths} blocks"
            )
        if any(not 0 < share <= 1 for share in self.keep_rates):
            raise UserError(f"PiT: keep_rates={self.keep_rates} must be shares above 0 and up to 1")

    @property
    def plain(self) -> PiTSpec:
        """The same network without selectors."""
        return dataclasses.replace(self, predictor_blocks=(), keep_rates=())

    @property
    def grids(self) -> tuple[int, ...]:
        """Side of the grid of patches in each stage."""
        sides = [(self.image_size - self.patch_size) // self.stride + 1]
        for _ in self.depths[1:]:
            sides.append((sides[-1] - 1) // 2 + 1)
        return tuple(sides)

    def stage(self, index: int) -> ModelSpec:
        """What the blocks of a stage are made for."""
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
        """Patches that a stage's selector leaves. One patch alone in a new package would save nothing: it stays."""
        patches = self.grids[index] ** 2
        if not self.predictor_blocks:
            return patches
        wanted = max(1, round(self.keep_rates[index] * patches))
        packed = any(self.patches_after(earlier) < self.grids[earlier] ** 2 for earlier in range(index))
        return patches if wanted == patches - 1 and not packed else wanted


def pit_macs(spec: PiTSpec) -> int:
    """Multiply-accumulates of one image: convolutions, blocks, selectors, gathering into the package, classifier."""
    first = spec.grids[0] ** 2 * spec.patch_size**2 * spec.channels * spec.dims[0]
    total, packed = first + spec.dims[-1] * spec.num_classes, 0
    for stage, (side, dim, depth) in enumerate(zip(spec.grids, spec.dims, spec.depths)):
        count, mlp_dim = 1 + side**2 + packed, int(dim * spec.mlp_ratio)
        for block in range(depth):
            if spec.predictor_blocks and block == spec.predictor_blocks[stage]:
                total += predictor_macs(count - 1, dim, spec.heads[stage])
                if spec.patches_after(stage) < side**2:
                    patches_after = 1 + spec.patches_after(stage) + 1
                    total += METHODS["package"].macs(count, (patches_after,), dim, 0)
                    count, packed = patches_after, 1
            total += 4 * count * dim**2 + 2 * count**2 * dim + 2 * count * dim * mlp_dim
        if stage + 1 < len(spec.dims):
            wide = spec.dims[stage + 1]
            total += spec.grids[stage + 1] ** 2 * 9 * wide + (1 + packed) * dim * wide
    return total


def pit_at_share(
    spec: PiTSpec,
    share: float,
    predictor_blocks: tuple[int, ...] | None = None,
    powers: tuple[float, ...] | None = None,
) -> PiTSpec:
    """Selectors that keep rho ** powers[stage] of each stage's patches, with the rho (in steps of 0.01) whose
    multiply-accumulates come nearest to `share` of the plain network's.

    sites: by default in the middle of each stage, as published for PiT-S. powers: by default 1, 2, 3, ...: later stages keep
    less. `kept` is rounded to whole patches: what training aims at is what evaluation leaves.
    """
    predictor_blocks = (
        tuple(depth // 2 for depth in spec.depths) if predictor_blocks is None else predictor_blocks
    )
    powers = tuple(range(1, len(spec.depths) + 1)) if powers is None else powers
    if len(powers) != len(spec.depths):
        raise UserError(f"PiT: powers={powers} need one entry for each of {len(spec.depths)} stages")
    target = share * pit_macs(spec.plain)

    def choice(rho: float) -> PiTSpec:
        asked = dataclasses.replace(
            spec, predictor_blocks=predictor_blocks, keep_rates=tuple(rho**power for power in powers)
        )
        keep_rates = tuple(asked.patches_after(stage) / side**2 for stage, side in enumerate(spec.grids))
        return dataclasses.replace(asked, keep_rates=keep_rates)

    return min(
        (choice(percent / 100) for percent in range(1, 101)), key=lambda own: abs(pit_macs(own) - target)
    )
